// The page's parts, put together: pages, state of the server, dialogs, composer.

import { address, apiKey, getJson, getText } from "./api.js";
import { writers } from "./code_samples.js";
import { Conversation } from "./conversation.js";
import { announce, byId, button, copy, element } from "./dom.js";
import { startEmbeddings } from "./embeddings.js";
import { buildRequest } from "./request.js";
import { startSchemaEditor } from "./schema_editor.js";
import { ServerPage } from "./server_page.js";

const STATE_EVERY_MS = 5000;
const LOADING_EVERY_MS = 1000;
const FORM = "settings";
const PAGES = ["chat", "embeddings", "server"];
const EXAMPLE_TOOL = [{
  type: "function",
  function: {
    name: "get_current_weather",
    description: "Get the current weather",
    parameters: {
      type: "object",
      properties: { location: { type: "string" }, format: { type: "string", enum: ["celsius", "fahrenheit"] } },
      required: ["location", "format"],
    },
  },
}];

restoreForm();
startSchemaEditor();
startEmbeddings();
const conversation = new Conversation((text, urls) => {
  byId("prompt").value = text;
  setImages(urls);
  byId("prompt").focus();
});
const serverPage = new ServerPage();
let images = [];
let facts = null; // of /info

// Pages

function openPage(name) {
  for (const page of PAGES) byId(`page-${page}`).hidden = page !== name;
  for (const each of document.querySelectorAll("nav [data-page]")) {
    if (each.dataset.page === name) each.setAttribute("aria-current", "page");
    else each.removeAttribute("aria-current");
  }
  if (name === "server") serverPage.show();
  else serverPage.hide();
  history.replaceState(null, "", `#${name}`);
}
for (const each of document.querySelectorAll("nav [data-page]")) {
  each.addEventListener("click", () => openPage(each.dataset.page));
}

// State of the server

// Returns whether the server is ready.
async function readState() {
  const state = byId("state");
  try {
    await getText("health");
    show("ready", "ready", "");
  } catch (error) {
    facts = null;
    show(error.status ? "not ready" : "unreachable", "down", error.message);
    return false;
  }
  if (!facts) await readFacts().catch((error) => error.status && showNoModel());
  return true;
  function show(text, kind, reason) {
    if (state.textContent !== text) state.textContent = text;
    state.className = `state ${kind}`;
    if (byId("reason").textContent !== reason) byId("reason").textContent = reason;
  }
}
// While the model loads, its stages are shown as they come.
async function watchState() {
  let isReady = false;
  try {
    isReady = document.hidden || (await readState());
  } finally {
    setTimeout(watchState, isReady ? STATE_EVERY_MS : LOADING_EVERY_MS);
  }
}

// User code with a model of its own has no engine, and nothing to chat with.
function showNoModel() {
  byId("model-name").textContent = "No language model is served here";
  document.querySelector('[data-page="chat"]').hidden = true;
  if (location.hash !== "#server") openPage("server");
}

async function readFacts() {
  facts = await getJson("info");
  const isEmbedder = "model_type" in facts;
  byId("model-name").textContent = facts.model_id;
  document.title = facts.model_id;
  byId("attach").hidden = !facts.reads_images;
  document.querySelector('[data-page="chat"]').hidden = isEmbedder;
  await readModels();
  if (isEmbedder && location.hash !== "#server") openPage("embeddings");
}

// The model, its adapters, and whether there is an embedding model beside it.
async function readModels() {
  let models;
  try {
    models = (await getJson("v1/models")).data;
  } catch (error) {
    if (error.status === 401) askForKey(apiKey.get() ? "The server does not accept this key." : "");
    return;
  }
  const chatModels = models.filter((model) => model.max_model_len && (model.id === facts.model_id || model.parent));
  showModels(chatModels);
  const hasEmbedder = "model_type" in facts || models.some((model) => !chatModels.includes(model));
  document.querySelector('[data-page="embeddings"]').hidden = !hasEmbedder;
}
function showModels(models) {
  const select = byId("model");
  const before = select.value;
  const names = models.map((model) => model.id).join("\n");
  if (names === [...select.options].map((option) => option.value).join("\n")) return; // it may be open
  select.replaceChildren(...models.map((model) =>
    element("option", { value: model.id, selected: model.id === before }, model.parent ? `adapter: ${model.id}` : model.id)));
}
byId("model").addEventListener("focus", readModels);

// Settings

function restoreForm() {
  const saved = JSON.parse(sessionStorage.getItem(FORM) || "{}");
  for (const [id, value] of Object.entries(saved)) {
    const input = byId(id);
    if (!input) continue;
    if (input.type === "checkbox") input.checked = value;
    else input.value = value;
  }
}
byId("settings").addEventListener("input", () => {
  const inputs = [...byId("settings").querySelectorAll("[id]:is(input, select, textarea)")];
  const values = inputs.filter((input) => input.id !== "model")
    .map((input) => [input.id, input.type === "checkbox" ? input.checked : input.value]);
  sessionStorage.setItem(FORM, JSON.stringify(Object.fromEntries(values)));
  checkTools();
});
function checkTools() {
  try {
    JSON.parse(byId("tools").value || "[]");
    byId("tools-error").textContent = "";
  } catch (error) {
    byId("tools-error").textContent = error.message;
  }
}
byId("example-tool").addEventListener("click", () => {
  byId("tools").value = JSON.stringify(EXAMPLE_TOOL, null, 2);
  byId("tools").dispatchEvent(new Event("input", { bubbles: true }));
});
byId("open-settings").addEventListener("click", () => {
  const isPhone = matchMedia("(max-width: 800px)").matches;
  const isOpen = isPhone ? byId("settings").classList.toggle("open") : !byId("settings").classList.toggle("closed");
  byId("open-settings").setAttribute("aria-expanded", String(isOpen));
  if (isPhone && isOpen) byId("close-settings").focus();
});
// On a phone they cover the chat. Returns whether they were open.
function closeSettings() {
  if (!byId("settings").classList.contains("open")) return false;
  byId("settings").classList.remove("open");
  byId("open-settings").setAttribute("aria-expanded", "false");
  byId("open-settings").focus();
  return true;
}
byId("close-settings").addEventListener("click", closeSettings);
byId("open-settings").setAttribute("aria-expanded", String(!matchMedia("(max-width: 800px)").matches));

// Composer

function sendPrompt() {
  const text = byId("prompt").value;
  if (conversation.running || (!text.trim() && !images.length)) return;
  byId("prompt").value = "";
  conversation.send(text, images);
  setImages([]);
}
function setImages(urls) {
  images = urls;
  byId("attachments").replaceChildren(...urls.map((url) => {
    const remove = button("", () => setImages(images.filter((each) => each !== url)), { "aria-label": "Remove image" });
    remove.append(element("img", { src: url, alt: "" }));
    return remove;
  }));
}
async function addImages(files) {
  const pictures = [...files].filter((file) => file.type.startsWith("image/"));
  setImages([...images, ...(await Promise.all(pictures.map(dataUrl)))]);
}
function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
byId("composer").addEventListener("submit", (event) => { event.preventDefault(); sendPrompt(); });
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  sendPrompt();
});
byId("prompt").addEventListener("paste", (event) => {
  if (facts?.reads_images && event.clipboardData.files.length) addImages(event.clipboardData.files);
});
for (const name of ["dragover", "dragleave", "drop"]) {
  byId("page-chat").addEventListener(name, (event) => {
    event.preventDefault(); // else the browser leaves the page to show the file
    byId("composer").classList.toggle("dropping", name === "dragover" && Boolean(facts?.reads_images));
    if (name === "drop" && facts?.reads_images) addImages(event.dataTransfer.files);
  });
}
byId("image-file").addEventListener("change", (event) => { addImages(event.target.files); event.target.value = ""; });
byId("stop").addEventListener("click", () => conversation.stop());
byId("new-chat").addEventListener("click", () => { conversation.clear(); byId("prompt").focus(); announce("New chat"); });
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (!closeSettings()) conversation.stop();
});

// Dialogs

function showCode(kind) {
  for (const each of byId("code-kinds").children) each.setAttribute("aria-pressed", String(each.dataset.kind === kind));
  const draft = byId("prompt").value.trim();
  const turns = [...conversation.turns];
  while (turns.at(-1)?.role === "assistant") turns.pop(); // the request that it answered
  if (draft) turns.splice(0, turns.length, ...conversation.turns, { role: "user", content: draft, images });
  if (!turns.length) turns.push({ role: "user", content: "What is deep learning?" });
  try {
    byId("code").textContent = writers[kind](buildRequest(turns), address(""), Boolean(apiKey.get()));
  } catch (error) {
    byId("code").textContent = error.message;
  }
}
byId("show-code").addEventListener("click", () => { showCode("curl"); byId("code-dialog").showModal(); });
for (const each of byId("code-kinds").children) each.addEventListener("click", () => showCode(each.dataset.kind));
byId("copy-code").addEventListener("click", (event) => copy(byId("code").textContent, event.target));
function askForKey(problem) {
  byId("key-error").textContent = problem;
  byId("api-key").value = apiKey.get();
  if (!byId("key-dialog").open) byId("key-dialog").showModal();
}
byId("open-key").addEventListener("click", () => askForKey(""));
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey.set(byId("api-key").value.trim());
  byId("key-dialog").close();
  if (facts) readModels();
});
for (const each of document.querySelectorAll("[data-close]")) {
  each.addEventListener("click", () => each.closest("dialog").close());
}

// Light and dark

function setTheme(name) {
  document.documentElement.dataset.theme = name;
}
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
setTheme(localStorage.getItem("theme") || (prefersDark.matches ? "dark" : "light"));
prefersDark.addEventListener("change", () => localStorage.getItem("theme") || setTheme(prefersDark.matches ? "dark" : "light"));
byId("theme").addEventListener("click", () => {
  const name = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("theme", name);
  setTheme(name);
  announce(`${name} theme`);
});

openPage(PAGES.includes(location.hash.slice(1)) ? location.hash.slice(1) : "chat");
watchState();
