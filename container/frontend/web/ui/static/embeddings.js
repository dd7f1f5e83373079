// Similarity of sentences, by the embedding model.

import { postJson } from "./api.js";
import { byId, element } from "./dom.js";
import { lines } from "./request.js";

export function startEmbeddings() {
  byId("similarity").addEventListener("submit", compare);
}

async function compare(event) {
  event.preventDefault();
  byId("similarity-error").textContent = "";
  const sentences = lines("sentences");
  const inputs = { source_sentence: byId("source").value, sentences };
  try {
    const cosines = await (await postJson("similarity", { inputs })).json();
    show(sentences.map((sentence, index) => [sentence, cosines[index]]));
  } catch (error) {
    byId("similarity-error").textContent = error.message;
  }
}

function show(rows) {
  rows.sort((one, other) => other[1] - one[1]);
  byId("similarities").hidden = false;
  byId("similarities").tBodies[0].replaceChildren(...rows.map(([sentence, cosine]) =>
    element("tr", {}, element("td", {}, sentence), element("td", {}, cosine.toFixed(3)))));
}
