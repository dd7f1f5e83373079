// Prometheus' text format, and rates and quantiles from two readings of it.

// Returns a map from a metric's name to its samples: { labels, value }.
export function parseMetrics(text) {
  const metrics = new Map();
  for (const line of text.split("\n")) {
    const match = /^([\w:]+)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!match) continue;
    const [, name, labels, value] = match;
    if (!metrics.has(name)) metrics.set(name, []);
    metrics.get(name).push({ labels: readLabels(labels || ""), value: Number(value) });
  }
  return metrics;
}

function readLabels(text) {
  const labels = {};
  for (const [, name, value] of text.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
    labels[name] = value.replace(/\\(.)/g, (_, char) => (char === "n" ? "\n" : char));
  }
  return labels;
}

export function total(metrics, name) {
  return (metrics.get(name) || []).reduce((sum, sample) => sum + sample.value, 0);
}

// Values of a labelled counter by one label.
export function byLabel(metrics, name, label) {
  return new Map((metrics.get(name) || []).map(({ labels, value }) => [labels[label], value]));
}

// The counts of a histogram's buckets, cumulative, by upper bound.
function buckets(metrics, name) {
  return (metrics.get(`${name}_bucket`) || []).map(({ labels, value }) => [
    labels.le === "+Inf" ? Infinity : Number(labels.le), value,
  ]);
}

// A quantile of what a histogram has counted since an earlier reading; null without any.
export function quantile(now, before, name, share) {
  const earlier = new Map(before ? buckets(before, name) : []);
  const counts = buckets(now, name).map(([bound, count]) => [bound, count - (earlier.get(bound) || 0)]);
  const all = counts.at(-1)?.[1] || 0;
  if (all <= 0) return null;
  let lower = 0;
  let below = 0;
  for (const [bound, count] of counts) {
    if (count >= share * all) {
      if (bound === Infinity) return lower;
      return lower + (bound - lower) * ((share * all - below) / (count - below || 1));
    }
    [lower, below] = [bound, count];
  }
  return lower;
}
