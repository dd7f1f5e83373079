// The editor of an answer's form: rows for the fields of a flat object, and the schema as JSON.

import { byId, button, element } from "./dom.js";

const TYPES = ["string", "integer", "number", "boolean", "string[]", "number[]"];

export function startSchemaEditor() {
  byId("format").addEventListener("change", showEditor);
  byId("add-field").addEventListener("click", () => addRow("", "string", true).querySelector("input").focus());
  byId("schema").addEventListener("input", readSchema);
  if (byId("schema").value) readSchema();
  else setSchema({ name: "string", age: "integer" });
  showEditor();
}

function showEditor() {
  const format = byId("format").value;
  byId("schema-editor").hidden = format !== "json_schema";
  byId("regex-editor").hidden = format !== "regex";
  byId("choice-editor").hidden = format !== "choice";
}

function setSchema(fields) {
  for (const [name, type] of Object.entries(fields)) addRow(name, type, true);
  writeSchema();
}

function addRow(name, type, isRequired) {
  const options = TYPES.map((each) => element("option", { selected: each === type }, each));
  const row = element("div", { class: "field-row", oninput: writeSchema },
    element("input", { value: name, placeholder: "name", "aria-label": "Field name" }),
    element("select", { "aria-label": "Type" }, ...options),
    element("label", {}, element("input", { type: "checkbox", checked: isRequired }), "required"),
    button("✕", () => { row.remove(); writeSchema(); byId("add-field").focus(); }, { "aria-label": "Remove field" }));
  byId("schema-fields").append(row);
  return row;
}

// From the rows to the JSON.
function writeSchema() {
  const schema = { type: "object", properties: {}, required: [], additionalProperties: false };
  for (const row of byId("schema-fields").children) {
    const [name, type, required] = row.querySelectorAll("input:not([type]), select, input[type=checkbox]");
    if (!name.value) continue;
    schema.properties[name.value] = schemaOf(type.value);
    if (required.checked) schema.required.push(name.value);
  }
  byId("schema").value = JSON.stringify(schema, null, 2);
  byId("schema-error").textContent = "";
}

// From the JSON to the rows, as far as rows can say it.
function readSchema() {
  let schema;
  try {
    schema = JSON.parse(byId("schema").value);
    byId("schema-error").textContent = "";
  } catch (error) {
    byId("schema-error").textContent = error.message;
    return;
  }
  byId("schema-fields").replaceChildren();
  for (const [name, value] of Object.entries(schema?.properties || {})) {
    const type = typeOf(value);
    if (type) addRow(name, type, (schema.required || []).includes(name));
  }
}

function schemaOf(type) {
  return type.endsWith("[]") ? { type: "array", items: { type: type.slice(0, -2) } } : { type };
}

function typeOf(schema) {
  const type = schema.type === "array" ? `${schema.items?.type}[]` : schema.type;
  return TYPES.includes(type) ? type : null;
}
