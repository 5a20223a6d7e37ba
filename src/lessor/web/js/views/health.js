// SPDX-License-Identifier: Apache-2.0
// How the server is: who leads, how long commits take, how late leases end, what is near a bound; charts of the last hour.

import { call, every } from "../api.js";
import { h, replace, setText } from "../dom.js";
import { samples } from "../samples.js";
import { count, idHex, size } from "../text.js";
import { t, word } from "../words.js";

const HOUR_S = 3600;
const SPAN_S_MIN = 300;
// Title, unit, series as [column, label, colour].
const CHARTS = [
  [word("Lease events"), "/s", [["renewals", word("renewals"), "--c1"], ["grants", word("grants"), "--c2"], ["expired", word("expiries"), "--c3"]]],
  [word("Commit"), "ms", [["commit", word("mean"), "--c1"], ["commit99", word("99 %"), "--c3"]]],
  [word("Lateness of expiry"), "ms", [["lateness", word("99 %"), "--c3"]]],
  [word("Leases and keys"), "", [["leases", word("leases"), "--c1"], ["keys", word("keys"), "--c2"]]],
  [word("Requests"), "/s", [["requests", word("requests"), "--c1"]]],
  [word("Watchers and connections"), "", [["watchers", word("watchers"), "--c1"], ["connections", word("connections"), "--c2"]]],
];

// What the charts show: the last hour, or as much of it as the page has seen.
function span() {
  const now = Date.now() / 1000;
  const first = samples.columns.times[0] ?? now;
  return { min: Math.max(now - HOUR_S, Math.min(first, now - SPAN_S_MIN)), max: now };
}

const short = (value) => {
  if (value === null || value === undefined) return "–";
  if (value >= 10_000) return Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 }).format(value);
  return String(value >= 100 ? Math.round(value) : value >= 10 ? Math.round(value * 10) / 10 : Math.round(value * 100) / 100);
};

export function healthView(root) {
  const figures = h("div", { class: "figures" });
  const members = h("tbody", {});
  const alarms = h("div", {});
  const bounds = h("dl", { class: "facts rows" });
  const charts = h("div", { class: "charts" });
  const values = new Map();
  let plots = [];
  let over = false;

  function figure(key, label) {
    const value = h("span", { class: "figure-value" }, "–");
    values.set(key, value);
    return h("div", { class: "figure panel" }, h("span", { class: "figure-label" }, label), value);
  }
  const figureOf = (key, text) => setText(values.get(key), text);

  async function look() {
    const [status, list, alarm] = await Promise.allSettled([
      call("maintenance/status"), call("cluster/member/list"), call("maintenance/alarm", { action: "GET" }),
    ]);
    const found = status.value;
    if (found) {
      const leads = found.leader === found.header.member_id;
      figureOf("role", !found.leader || found.leader === "0" ? t("no leader") : leads ? t("leader") : found.isLearner ? t("learner") : t("follower"));
      figureOf("revision", found.header.revision ?? "–");
      figureOf("size", size(found.dbSizeInUse ?? found.dbSize ?? 0));
    }
    if (list.value) {
      replace(members, list.value.members.map((each) => {
        const role = each.isLearner ? t("learner") : each.ID === found?.leader ? t("leader") : t("follower");
        const self = each.ID === found?.header.member_id;
        return h("tr", {}, h("td", {}, each.name, self ? h("span", { class: "badge plain" }, t("this one")) : null), h("td", { class: "mono" }, idHex(each.ID)), h("td", {}, role),
          h("td", { class: "mono" }, (each.clientURLs ?? []).join(", ")),
          h("td", {}, self ? `${found.version} · ${size(found.dbSize ?? 0)}` : t("asked only at that one")),
          h("td", {}, self ? String(BigInt(found.raftIndex ?? 0) - BigInt(found.raftAppliedIndex ?? 0)) : "–"));
      }));
    }
    if (alarm.value) {
      const raised = alarm.value.alarms ?? [];
      replace(alarms, raised.length
        ? raised.map((each) => h("p", { class: "problem" }, t("Alarm {name}, raised by member {id}", { name: each.alarm, id: idHex(each.memberID) })))
        : h("p", { class: "dim" }, t("No alarm is raised.")));
    }
  }

  function bar(label, used, most, show) {
    if (used === null || most === null || !(most > 0)) return null;
    const fill = h("span", { class: "fill" });
    const part = Math.min(1, used / most);
    fill.style.transform = `scaleX(${part})`;
    fill.dataset.level = part > 0.9 ? "low" : part > 0.7 ? "middle" : "high";
    return [h("dt", {}, label), h("dd", {}, h("span", { class: "bar", "aria-hidden": "true" }, fill), h("span", {}, t("{used} of {most}", { used: show(used), most: show(most) })))];
  }

  function draw() {
    const last = (name) => samples.columns[name].at(-1);
    figureOf("leases", short(last("leases")));
    figureOf("keys", short(last("keys")));
    figureOf("renewals", last("renewals") === null || last("renewals") === undefined ? "–" : `${short(last("renewals"))}/s`);
    figureOf("watchers", short(last("watchers")));
    figureOf("connections", short(last("connections")));
    const reached = samples.value("lessor_limit_reached_total");
    replace(bounds,
      bar(t("Quota"), samples.value("lessor_quota_counted_bytes"), samples.value("etcd_server_quota_backend_bytes"), size),
      bar(t("Open files"), samples.value("os_fd_used"), samples.value("os_fd_limit"), count),
      h("dt", {}, t("Free on the disk")), h("dd", {}, samples.value("lessor_disk_free_bytes") === null ? "–" : size(samples.value("lessor_disk_free_bytes"))),
      h("dt", {}, t("Rows that wait for a commit")), h("dd", {}, count(samples.value("lessor_open_batch_rows") ?? 0)),
      h("dt", {}, t("Slow watchers")), h("dd", {}, count(samples.value("etcd_debugging_mvcc_slow_watcher_total") ?? 0)),
      h("dt", {}, t("Refused at a bound, since the start")), h("dd", {}, reached === null ? "–" : count(reached)));
    for (const { plot, series, values: latest } of plots) {
      plot.setData([samples.columns.times, ...series.map(([column]) => samples.columns[column])], false);
      plot.setScale("x", span());
      for (const [at, [column]] of series.entries()) setText(latest[at], short(samples.columns[column].at(-1)));
    }
  }

  // The library comes when it is wanted: the other views do without.
  async function drawCharts() {
    const { default: uPlot } = await import("../../vendor/uplot/uPlot.esm.js");
    if (over) return;
    for (const each of plots) each.plot.destroy();
    const styles = getComputedStyle(document.documentElement);
    const colour = (name) => styles.getPropertyValue(name).trim();
    const probe = h("span", { class: "away" });
    document.body.append(probe);
    const real = (name) => {
      probe.style.color = `var(${name})`; // light-dark() is worked out only for a real property
      return getComputedStyle(probe).color;
    };
    const axis = { stroke: real("--muted"), grid: { stroke: real("--line"), width: 1 }, ticks: { show: false }, font: `11px ${colour("--sans")}` };
    plots = CHARTS.map(([title, unit, series], at) => {
      const box = charts.children[at].querySelector(".plot");
      const plot = new uPlot({
        width: Math.max(220, box.clientWidth), height: 140, legend: { show: false }, padding: [8, 8, 0, 0],
        cursor: { y: false, points: { size: 5 } },
        scales: { x: { time: true, auto: false, ...span() }, y: { range: (_, low, high) => [0, Math.max(1, high * 1.15)] } },
        axes: [{ ...axis, space: 60, size: 24, values: (_, ticks) => ticks.map((tick) => new Date(tick * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false })) },
          { ...axis, size: 46, values: (_, ticks) => ticks.map(short) }],
        series: [{}, ...series.map(([, label, name]) => ({ label: t(label), stroke: real(name), width: 1.5, spanGaps: true, points: { show: samples.columns.times.length < 3 } }))],
      }, [samples.columns.times, ...series.map(([column]) => samples.columns[column])], box);
      return { plot, series, values: [...charts.children[at].querySelectorAll(".figure-now")] };
    });
    probe.remove();
    draw();
  }

  replace(charts, CHARTS.map(([title, unit, series]) => h("figure", { class: "panel chart" },
    h("figcaption", {}, h("span", { class: "chart-title" }, t(title), unit ? h("span", { class: "dim" }, ` ${unit}`) : null),
      h("span", { class: "legend" }, series.map(([, label, name]) =>
        h("span", { class: `swatch s${name.slice(-1)}` }, t(label), " ", h("span", { class: "figure-now" }, "–"))))),
    h("div", { class: "plot", "aria-hidden": "true" }))));
  replace(root,
    h("div", { class: "view-head" }, h("h1", {}, t("Health"))),
    h("div", { class: "figures" }, figure("role", t("This server")), figure("revision", t("Revision")), figure("leases", t("Leases")), figure("keys", t("Keys")),
      figure("renewals", t("Renewals")), figure("watchers", t("Watchers")), figure("connections", t("Connections")), figure("size", t("Data in use"))),
    charts,
    h("section", { class: "panel pad" }, h("h2", {}, t("Members")),
      h("div", { class: "scroll-x", tabindex: "0", role: "region", "aria-label": t("Members") }, h("table", {}, h("thead", {}, h("tr", {},
        [t("Name"), "ID", t("Role"), t("Client URLs"), t("Version and size"), t("Records behind")].map((label) => h("th", { scope: "col" }, label)))), members))),
    h("div", { class: "split even" },
      h("section", { class: "panel pad" }, h("h2", {}, t("Bounds")), bounds),
      h("section", { class: "panel pad" }, h("h2", {}, t("Alarms")), alarms)));
  samples.addEventListener("sample", draw);
  const loop = every(5000, look);
  const redraw = () => drawCharts();
  window.addEventListener("lessor-colours", redraw);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", redraw);
  const resize = new ResizeObserver(() => {
    for (const [at, { plot }] of plots.entries()) plot.setSize({ width: Math.max(220, charts.children[at].querySelector(".plot").clientWidth), height: 140 });
  });
  resize.observe(charts);
  drawCharts();
  draw();
  return () => {
    over = true;
    loop.stop();
    resize.disconnect();
    for (const { plot } of plots) plot.destroy();
    samples.removeEventListener("sample", draw);
    window.removeEventListener("lessor-colours", redraw);
    dark.removeEventListener("change", redraw);
  };
}
