// One turn of the conversation as elements.

import { button, copy, element } from "./dom.js";
import { render } from "./markdown.js";
import { tokenView } from "./token_view.js";

const NAMES = { user: "You", assistant: "Model", tool: "Tool result" };

export class MessageView {
  // `actions` are functions of the conversation: regenerate, edit, answerCalls.
  constructor(turn, actions) {
    this.turn = turn;
    this.actions = actions;
    this.body = element("div", { class: "body" });
    this.reasoning = element("details", { class: "reasoning", hidden: true },
      element("summary", {}, "Reasoning"), element("div", {}));
    this.calls = element("div", {});
    this.error = element("p", { class: "error", role: "alert" });
    this.tail = element("div", {});
    this.bar = element("div", { class: "bar" });
    this.root = element("article", { class: `message ${turn.role}`, "aria-label": NAMES[turn.role] },
      element("div", { class: "who" }, NAMES[turn.role]),
      this.reasoning, this.body, this.calls, this.error, this.tail, this.bar);
    this.update();
  }

  // Show the turn as it is now; while it is `busy`, at most once a frame.
  update() {
    const { turn } = this;
    this.root.classList.toggle("busy", Boolean(turn.busy));
    this.root.setAttribute("aria-busy", String(Boolean(turn.busy)));
    if (turn.role === "assistant") this.body.replaceChildren(render(turn.content || ""));
    else this.body.replaceChildren(...this.images(), turn.content);
    this.reasoning.hidden = !turn.reasoning;
    this.reasoning.lastElementChild.textContent = turn.reasoning || "";
    this.calls.replaceChildren(...(turn.tool_calls || []).map(callView));
    this.error.textContent = turn.error || "";
    if (turn.busy) this.bar.replaceChildren();
    else this.finish();
  }

  images() {
    return (this.turn.images || []).map((url) => element("img", { src: url, alt: "Attached image" }));
  }

  finish() {
    const { turn, actions } = this;
    const buttons = [button("Copy", (event) => copy(turn.content, event.target), { "aria-label": "Copy message" })];
    if (turn.role === "user") buttons.push(button("Edit", () => actions.edit(turn), { "aria-label": "Edit message" }));
    if (turn.role === "assistant") buttons.push(button(turn.error ? "Try again" : "Regenerate", () => actions.regenerate(turn)));
    if (turn.tokens?.length) buttons.push(this.tokensButton());
    this.bar.replaceChildren(...buttons, element("span", { class: "facts" }, factsOf(turn)));
    if (turn.tool_calls?.length && !turn.answered) this.tail.replaceChildren(this.resultForm());
    else if (turn.tool_calls?.length) this.tail.replaceChildren();
  }

  tokensButton() {
    return button("Tokens", (event) => {
      const isOpen = event.target.getAttribute("aria-expanded") === "true";
      event.target.setAttribute("aria-expanded", String(!isOpen));
      this.tail.replaceChildren(...(isOpen ? [] : [tokenView(this.turn.tokens)]));
    }, { "aria-expanded": "false" });
  }

  resultForm() {
    const calls = this.turn.tool_calls;
    const inputs = calls.map((call) =>
      element("textarea", { rows: "2", class: "code", "aria-label": `Result of ${call.function.name}` }));
    const submit = (event) => {
      event.preventDefault();
      this.actions.answerCalls(this.turn, inputs.map((input) => input.value));
    };
    const fields = inputs.map((input, index) =>
      element("label", {}, `Result of ${calls[index].function.name}`, input));
    return element("form", { onsubmit: submit, "aria-label": "Results of tool calls" }, ...fields,
      element("button", { class: "primary" }, "Send result"));
  }
}

function callView(call) {
  return element("div", { class: "call" }, element("strong", {}, `Calls ${call.function.name}`),
    element("pre", { tabindex: "0", "aria-label": "Arguments" }, pretty(call.function.arguments)));
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // not whole yet
  }
}

function factsOf(turn) {
  const facts = [];
  if (turn.usage) facts.push(`${turn.usage.prompt_tokens} + ${turn.usage.completion_tokens} tokens`);
  if (turn.usage?.prompt_tokens_details?.cached_tokens)
    facts.push(`${turn.usage.prompt_tokens_details.cached_tokens} from the prefix cache`);
  if (turn.firstMs !== undefined) facts.push(`first after ${Math.round(turn.firstMs)} ms`);
  if (turn.perSecond) facts.push(`${turn.perSecond.toFixed(1)} tokens/s`);
  if (turn.finish === "length") facts.push("cut at the length limit");
  if (turn.finish === "stopped") facts.push("stopped");
  return facts.join(" · ");
}
