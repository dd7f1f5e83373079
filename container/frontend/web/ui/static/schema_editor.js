// The editor of an answer's form: rows for the fields of a flat object, and the schema as JSON.

import { byId, button, element } from "./dom.js";

const TYPES = ["string", "integer", "number", "boolean", "string[]", "number[]"];
const FIRST = {
  type: "object",
  properties: { name: { type: "string" }, age: { type: "integer" } },
  required: ["name", "age"],
  additionalProperties: false,
};

export function startSchemaEditor() {
  byId("format").addEventListener("change", showEditor);
  byId("add-field").addEventListener("click", () => addRow("", "string", true).querySelector("input").focus());
  byId("schema").addEventListener("input", readSchema);
  if (!byId("schema").value) byId("schema").value = JSON.stringify(FIRST, null, 2);
  readSchema();
  showEditor();
}

function showEditor() {
  const format = byId("format").value;
  byId("schema-editor").hidden = format !== "json_schema";
  byId("regex-editor").hidden = format !== "regex";
  byId("choice-editor").hidden = format !== "choice";
}

function addRow(name, type, isRequired) {
  const options = TYPES.map((each) => element("option", { selected: each === type }, each));
  const row = element("div", { class: "field-row", "data-field": name, oninput: () => writeRow(row) },
    element("input", { value: name, placeholder: "name", "aria-label": "Field name" }),
    element("select", { "aria-label": "Type" }, ...options),
    element("label", {}, element("input", { type: "checkbox", checked: isRequired }), "required"),
    button("✕", () => removeRow(row), { "aria-label": "Remove field" }));
  byId("schema-fields").append(row);
  return row;
}

function removeRow(row) {
  change((schema) => renamed(schema, row.dataset.field, "", null, false));
  row.remove();
  byId("settings").dispatchEvent(new Event("input")); // which keeps them for a reload
  byId("add-field").focus();
}

function writeRow(row) {
  const [name, type, required] = row.querySelectorAll("input:not([type]), select, input[type=checkbox]");
  const others = [...byId("schema-fields").children].filter((each) => each !== row);
  if (others.some((each) => name.value && each.dataset.field === name.value)) {
    byId("schema-error").textContent = `There is a field “${name.value}” already.`;
    return;
  }
  change((schema) => renamed(schema, row.dataset.field, name.value, type.value, required.checked));
  row.dataset.field = name.value;
}

// Change the JSON, and keep all of it that rows cannot say.
function change(edit) {
  let schema;
  try {
    schema = JSON.parse(byId("schema").value || "{}");
  } catch (error) {
    byId("schema-error").textContent = error.message;
    return;
  }
  byId("schema").value = JSON.stringify(edit(schema || {}), null, 2);
  byId("schema-error").textContent = "";
}

// The schema with a field under its new name and type, in its old place; without a name, without the field.
function renamed(schema, before, name, type, isRequired) {
  const entries = Object.entries(schema.properties || {});
  const at = entries.findIndex(([key]) => key === before);
  const old = at < 0 ? {} : entries[at][1];
  const field = [name, typeOf(old) === type ? old : { ...descriptionOf(old), ...schemaOf(type) }];
  if (name) entries.splice(at < 0 ? entries.length : at, at < 0 ? 0 : 1, field);
  else if (at >= 0) entries.splice(at, 1);
  const required = new Set((schema.required || []).filter((each) => each !== before && each !== name));
  if (name && isRequired) required.add(name);
  const properties = Object.fromEntries(entries);
  return { type: "object", ...schema, properties, required: Object.keys(properties).filter((key) => required.has(key)) };
}

function descriptionOf(schema) {
  return schema.description ? { description: schema.description } : {};
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
  if (!type) return {};
  return type.endsWith("[]") ? { type: "array", items: { type: type.slice(0, -2) } } : { type };
}

function typeOf(schema) {
  const type = schema?.type === "array" ? `${schema.items?.type}[]` : schema?.type;
  return TYPES.includes(type) ? type : null;
}
