// The tokens of an answer, coloured by probability; the chosen one shows its alternatives.

import { element } from "./dom.js";

const BOUNDS = [0.9, 0.6, 0.3, 0.1];

export function tokenView(tokens) {
  const alternatives = element("div", { class: "alternatives", role: "status", "aria-live": "polite" });
  const spans = tokens.map((token, index) =>
    element("span", {
      role: "option",
      class: shade(Math.exp(token.logprob)),
      "aria-selected": "false",
      onclick: () => select(index),
    }, visible(token.token)),
  );
  const list = element("div", {
    class: "tokens", role: "listbox", tabindex: "0", "aria-orientation": "horizontal",
    "aria-label": "Tokens; left and right arrows choose one",
    onkeydown: (event) => move(event),
  }, ...spans);
  let selected = -1;

  function move(event) {
    const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
    if (!(event.key in steps)) return;
    event.preventDefault();
    select(Math.min(spans.length - 1, Math.max(0, selected + steps[event.key])));
  }

  function select(index) {
    spans[selected]?.setAttribute("aria-selected", "false");
    selected = index;
    spans[index].setAttribute("aria-selected", "true");
    alternatives.replaceChildren(tableOf(tokens[index]));
  }

  return element("div", {}, list, alternatives);
}

function tableOf(token) {
  const isAmong = token.top_logprobs.some((other) => other.token === token.token);
  const rows = isAmong ? token.top_logprobs : [token, ...token.top_logprobs];
  return element("table", {},
    element("caption", {}, `Instead of ${JSON.stringify(token.token)}`),
    element("thead", {}, element("tr", {},
      element("th", { scope: "col" }, "Token"), element("th", { scope: "col" }, "Probability"))),
    element("tbody", {}, ...rows.map((row) => element("tr", {},
      element("td", { class: "code" }, JSON.stringify(row.token)),
      element("td", {}, percent(row.logprob))))),
  );
}

function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  return share < 0.01 ? "< 0.01 %" : `${share.toFixed(share < 1 ? 2 : 1)} %`;
}

function shade(probability) {
  const rank = BOUNDS.findIndex((bound) => probability >= bound);
  return `p${rank < 0 ? 0 : 4 - rank}`;
}

function visible(text) {
  return text.replaceAll("\n", "⏎\n") || "∅";
}
