// The conversation: its turns, the running answer, and what a person may do with them.

import { events, postJson } from "./api.js";
import { announce, byId } from "./dom.js";
import { MessageView } from "./message_view.js";
import { buildRequest, pathOf } from "./request.js";

const STORE = "conversation";

export class Conversation {
  // `takeBack` puts a message that is edited into the composer: its text and its images.
  constructor(takeBack) {
    this.takeBack = takeBack;
    this.views = [];
    this.running = null; // the AbortController of the answer that is being written
    this.log = byId("messages");
    for (const turn of restore()) this.add(turn);
  }

  get turns() {
    return this.views.map((view) => view.turn);
  }

  add(turn) {
    const actions = {
      regenerate: (of) => this.regenerate(of),
      edit: (of) => this.edit(of),
      answerCalls: (of, results) => this.answerCalls(of, results),
    };
    const view = new MessageView(turn, actions);
    this.views.push(view);
    this.log.append(view.root);
    this.log.scrollTop = this.log.scrollHeight;
    return view;
  }

  cut(from) {
    for (const view of this.views.splice(from)) view.root.remove();
    this.save();
  }

  clear() {
    this.stop();
    this.cut(0);
  }

  stop() {
    this.running?.abort();
  }

  send(content, images) {
    if (this.running) return;
    this.add({ role: "user", content, images });
    this.answer();
  }

  regenerate(turn) {
    if (this.running) return;
    this.cut(this.turns.indexOf(turn));
    this.answer();
  }

  edit(turn) {
    this.stop();
    this.cut(this.turns.indexOf(turn));
    this.takeBack(turn.content, turn.images || []);
  }

  answerCalls(turn, results) {
    if (this.running) return;
    turn.answered = true;
    this.views[this.turns.indexOf(turn)].update();
    turn.tool_calls.forEach((call, index) =>
      this.add({ role: "tool", content: results[index], tool_call_id: call.id, name: call.function.name }));
    this.answer();
  }

  async answer() {
    const turn = { role: "assistant", content: "", busy: true };
    let body;
    try {
      body = buildRequest(this.turns);
    } catch (error) {
      this.add({ ...turn, busy: false, error: error.message });
      return;
    }
    const view = this.add(turn);
    this.running = new AbortController();
    this.showRunning(true);
    try {
      await this.read(body, turn, view);
    } catch (error) {
      if (error.name === "AbortError") turn.finish = "stopped";
      else turn.error = error.message;
    }
    turn.busy = false;
    this.running = null;
    this.follow(() => view.update());
    this.showRunning(false);
    this.save();
    announce(turn.error ? "The answer failed" : `Answer: ${turn.content.slice(0, 500)}`);
  }

  async read(body, turn, view) {
    const start = performance.now();
    const response = await postJson(pathOf(body), body, this.running.signal);
    const paint = onceAFrame(() => this.follow(() => view.update()));
    for await (const chunk of events(response)) {
      if (chunk.usage) turn.usage = chunk.usage;
      for (const choice of chunk.choices) takeDelta(turn, choice, start);
      paint();
    }
    const seconds = (performance.now() - start - (turn.firstMs || 0)) / 1000;
    const rest = (turn.usage?.completion_tokens || 0) - 1;
    if (rest > 0 && seconds > 0) turn.perSecond = rest / seconds;
  }

  // Keep the end in sight, unless the reader has scrolled up.
  follow(change) {
    const { log } = this;
    const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    change();
    if (isAtEnd) log.scrollTop = log.scrollHeight;
  }

  showRunning(isRunning) {
    const hadFocus = document.activeElement === byId(isRunning ? "send" : "stop");
    byId("send").hidden = isRunning;
    byId("stop").hidden = !isRunning;
    if (hadFocus) byId(isRunning ? "stop" : "send").focus();
  }

  save() {
    try {
      sessionStorage.setItem(STORE, JSON.stringify(this.turns));
    } catch {
      sessionStorage.removeItem(STORE); // too many images for the browser's limit
    }
  }
}

function restore() {
  try {
    return JSON.parse(sessionStorage.getItem(STORE)) || [];
  } catch {
    return [];
  }
}

function takeDelta(turn, choice, start) {
  const delta = choice.delta || { content: choice.text };
  const isToken = delta.content || delta.reasoning_content || delta.tool_calls;
  if (isToken && turn.firstMs === undefined) turn.firstMs = performance.now() - start;
  turn.content += delta.content || "";
  if (delta.reasoning_content) turn.reasoning = (turn.reasoning || "") + delta.reasoning_content;
  for (const call of delta.tool_calls || []) takeCall(turn, call);
  if (choice.logprobs?.content) (turn.tokens ||= []).push(...choice.logprobs.content);
  if (choice.finish_reason) turn.finish = choice.finish_reason;
}

function takeCall(turn, part) {
  turn.tool_calls ||= [];
  const call = (turn.tool_calls[part.index] ||= {
    id: "", type: "function", function: { name: "", arguments: "" },
  });
  call.id = part.id || call.id;
  call.function.name = part.function?.name || call.function.name;
  call.function.arguments += part.function?.arguments || "";
}

function onceAFrame(paint) {
  let isDue = false;
  return () => {
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(() => {
      isDue = false;
      paint();
    });
  };
}
