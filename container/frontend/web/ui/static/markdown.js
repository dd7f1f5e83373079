// Markdown to safe elements: marked writes HTML, DOMPurify keeps what is harmless.

import { button, copy } from "./dom.js";
import { Marked } from "./vendor/marked.esm.js";
import DOMPurify from "./vendor/purify.es.js";

const parser = new Marked({ gfm: true, breaks: true, async: false });
const RULES = {
  RETURN_DOM_FRAGMENT: true,
  FORBID_TAGS: ["style", "form", "input", "button", "textarea", "select", "svg", "math", "iframe"],
  FORBID_ATTR: ["style", "id", "name", "class"],
  ALLOW_DATA_ATTR: false,
};

export function render(text) {
  const fragment = DOMPurify.sanitize(parser.parse(text), RULES);
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  // An answer must not make the browser fetch from elsewhere: its images become links.
  for (const image of fragment.querySelectorAll("img")) image.replaceWith(linkTo(image));
  for (const block of fragment.querySelectorAll("pre")) addCopy(block);
  return fragment;
}

function linkTo(image) {
  const link = document.createElement("a");
  link.textContent = image.alt || image.getAttribute("src") || "image";
  link.href = image.getAttribute("src") || "#";
  link.target = "_blank";
  link.rel = "noopener noreferrer";
  return link;
}

function addCopy(block) {
  const code = block.textContent;
  block.tabIndex = 0;
  block.append(
    button("Copy", (event) => copy(code, event.target), { class: "copy", "aria-label": "Copy code" }),
  );
}
