// The live page of the server: readings of /metrics every two seconds, and what /info says.

import { getJson, getText } from "./api.js";
import { byId, element } from "./dom.js";
import { byLabel, parseMetrics, quantile, total } from "./metrics.js";

const EVERY_MS = 2000;
const WINDOW = 31; // readings: a minute

export class ServerPage {
  constructor() {
    this.readings = []; // { at, metrics }
    this.cards = new Map();
    this.timer = null;
  }

  show() {
    this.readFacts();
    this.read();
    this.timer ||= setInterval(() => document.hidden || this.read(), EVERY_MS);
  }

  hide() {
    clearInterval(this.timer);
    this.timer = null;
  }

  async read() {
    try {
      const metrics = parseMetrics(await getText("metrics"));
      this.readings = [...this.readings, { at: performance.now(), metrics }].slice(-WINDOW);
      byId("server-error").textContent = "";
      this.draw();
    } catch (error) {
      byId("server-error").textContent = error.message;
    }
  }

  async readFacts() {
    try {
      const info = await getJson("info");
      byId("facts").replaceChildren(...Object.entries(info).flatMap(([name, value]) => [
        element("dt", {}, name.replaceAll("_", " ")),
        element("dd", {}, typeof value === "object" && value !== null ? JSON.stringify(value) : String(value ?? "none")),
      ]));
    } catch (error) {
      byId("server-error").textContent = error.message;
    }
  }

  draw() {
    const { metrics } = this.readings.at(-1);
    const oldest = this.readings.length > 1 ? this.readings[0].metrics : null;
    const hasEngine = metrics.has("engine_steps_total");
    if (hasEngine) this.load(metrics);
    this.card("Requests", number(total(metrics, "tgi_request_count")),
      `${number(total(metrics, "tgi_request_success"))} answered, ${number(total(metrics, "tgi_request_failure"))} failed, ${number(total(metrics, "tgi_request_aborted"))} left`);
    if (hasEngine) {
      this.duration("Time to first token", "tgi_request_first_token_duration", metrics, oldest);
      this.duration("Between tokens", "tgi_request_between_tokens_duration", metrics, oldest);
      this.duration("Whole request", "tgi_request_duration", metrics, oldest);
      this.cache(metrics, oldest);
    }
    if (metrics.has("embedder_texts_total")) this.embedder(metrics);
    this.adapters(metrics);
  }

  load(metrics) {
    const rates = this.rates("engine_decode_tokens_total");
    this.card("Tokens/s", number(rates.at(-1)), `prompts: ${number(this.rates("engine_prefill_tokens_total").at(-1))} tokens/s`, rates);
    this.card("Running", number(total(metrics, "tgi_batch_current_size")),
      `${number(total(metrics, "tgi_queue_size"))} in the queue`, this.series("tgi_batch_current_size"));
  }

  cache(metrics, oldest) {
    const since = (name) => total(metrics, name) - (oldest ? total(oldest, name) : 0);
    if (total(metrics, "engine_blocks_total")) this.blocks(metrics);
    if (total(metrics, "engine_state_slots_total")) this.states(metrics);
    const isBusy = since("engine_prefill_tokens_total") > 0;
    const count = isBusy ? since : (name) => total(metrics, name);
    const cached = count("engine_cached_tokens_total");
    const prompt = cached + count("engine_prefill_tokens_total");
    this.card("Prefix hits", prompt ? `${Math.round((100 * cached) / prompt)} %` : "–",
      `${number(cached)} of ${number(prompt)} prompt tokens, ${isBusy && oldest ? "last minute" : "since the start"}`);
    this.card("Preemptions", number(total(metrics, "engine_preemptions_total")), "since the start");
    const drafted = total(metrics, "engine_drafted_tokens_total");
    if (drafted) this.card("Drafts accepted", `${Math.round((100 * total(metrics, "engine_accepted_tokens_total")) / drafted)} %`, `${number(drafted)} tokens drafted`);
  }

  blocks(metrics) {
    const [used, cached, all] = ["used", "cached", "total"].map((name) => total(metrics, `engine_blocks_${name}`));
    const meter = element("meter", { min: 0, max: all || 1, value: used, "aria-label": "KV blocks in use" });
    this.card("KV blocks in use", `${number(used)} / ${number(all)}`, `${number(cached)} hold a known prefix`, null, meter);
  }

  // Of recurrent models.
  states(metrics) {
    const [used, all] = ["used", "total"].map((name) => total(metrics, `engine_state_slots_${name}`));
    const meter = element("meter", { min: 0, max: all, value: used, "aria-label": "State slots in use" });
    this.card("State slots in use", `${number(used)} / ${number(all)}`,
      `${number(total(metrics, "engine_state_snapshots"))} snapshots for prefixes`, null, meter);
  }

  embedder(metrics) {
    const rates = this.rates("embedder_tokens_total");
    this.card("Embedding tokens/s", number(rates.at(-1)),
      `${number(total(metrics, "embedder_texts_total"))} texts since the start, ${number(total(metrics, "embedder_waiting_texts"))} waiting`, rates);
  }

  duration(title, name, metrics, oldest) {
    const recent = quantile(metrics, oldest, name, 0.5) !== null;
    const [half, most] = [0.5, 0.9].map((share) => quantile(metrics, recent ? oldest : null, name, share));
    this.card(title, half === null ? "–" : seconds(half),
      half === null ? "none yet" : `p90 ${seconds(most)}, ${recent && oldest ? "last minute" : "since the start"}`);
  }

  adapters(metrics) {
    const requests = byLabel(metrics, "tgi_adapter_request_count", "adapter");
    const tokens = byLabel(metrics, "tgi_adapter_generated_tokens", "adapter");
    const last = this.readings.at(-2);
    const before = last ? byLabel(last.metrics, "tgi_adapter_generated_tokens", "adapter") : tokens;
    byId("no-adapters").hidden = requests.size > 0;
    const gap = last ? (this.readings.at(-1).at - last.at) / 1000 : 1;
    byId("adapters").tBodies[0].replaceChildren(...[...requests.keys()].sort().map((name) => {
      const rate = ((tokens.get(name) || 0) - (before.get(name) || 0)) / gap;
      return element("tr", {}, ...[name || "none (base model)", number(requests.get(name)), number(tokens.get(name)), number(rate)]
        .map((text) => element("td", {}, text)));
    }));
  }

  // Per-second increases between readings.
  rates(name) {
    return this.readings.slice(1).map((reading, index) => {
      const before = this.readings[index];
      const grown = total(reading.metrics, name) - total(before.metrics, name);
      return Math.max(0, grown / ((reading.at - before.at) / 1000));
    });
  }

  series(name) {
    return this.readings.map(({ metrics }) => total(metrics, name));
  }

  card(title, value, more, series = null, extra = null) {
    if (!this.cards.has(title)) {
      const root = element("section", { class: "card", "aria-label": title }, element("h3", {}, title));
      byId("numbers").append(root);
      this.cards.set(title, root);
    }
    const root = this.cards.get(title);
    root.replaceChildren(root.firstChild, element("p", { class: "value" }, value),
      element("p", { class: "more" }, more), ...(series ? [line(series)] : []), ...(extra ? [extra] : []));
  }
}

function line(series) {
  const SVG = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${WINDOW - 1} 1`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const polyline = document.createElementNS(SVG, "polyline");
  const most = Math.max(...series, 1e-9);
  polyline.setAttribute("points", series.map((value, index) => `${index},${0.97 - 0.94 * (value / most)}`).join(" "));
  svg.append(polyline);
  return svg;
}

function number(value) {
  if (value === undefined || Number.isNaN(value)) return "–";
  return value.toLocaleString("en", { maximumFractionDigits: value < 100 ? 1 : 0 });
}

function seconds(value) {
  return value < 1 ? `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms` : `${value.toFixed(1)} s`;
}
