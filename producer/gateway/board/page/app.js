// The page: who looks, which pool, which view; and one look a second at the figures while it is seen.

import * as api from "./api.js";
import { announce, ask, h, setText } from "./dom.js";
import { clock } from "./format.js";
import { signIn, showKeys } from "./asking.js";
import { Jobs } from "./jobs.js";
import { Letters } from "./letters.js";
import { Overview } from "./overview.js";
import { Playground } from "./playground.js";
import { Series } from "./series.js";

const LOOK_MS = 1000;
const MAX_PAUSE_MS = 8000;
const THEME = "tokenbus.theme";
const SINGLE_KEYS = "tokenbus.keys";
const $ = (id) => document.getElementById(id);

class Page {
  constructor() {
    this.session = null;
    this.pool = "";
    this.views = {};
    this.view = "";
    this.series = new Series();
    this.figures = null;
    this.failures = 0;
    this.drift = 0;
    this.worst = "";
  }

  get mayAct() {
    return this.session?.roles.includes("operator") ?? false;
  }

  // The server's time, by which all times on the page go.
  now() {
    return Date.now() + this.drift;
  }

  go(hash) {
    if (window.location.hash === hash) this.show();
    else window.location.hash = hash;
  }

  async start() {
    $("theme").addEventListener("click", () => this.changeTheme());
    $("help").addEventListener("click", () => this.help());
    $("pause").addEventListener("click", () => this.pause());
    $("sign-out").addEventListener("click", () => {
      api.keep("");
      sessionStorage.removeItem("tokenbus.talk");
      window.location.reload();
    });
    $("skip").addEventListener("click", (event) => {
      event.preventDefault();
      $("main").focus();
    });
    $("pool").addEventListener("change", () => this.choosePool($("pool").value));
    window.addEventListener("hashchange", () => this.show());
    window.addEventListener("keydown", (event) => this.onKey(event));
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.look();
    });
    await this.signedIn();
  }

  async signedIn() {
    try {
      this.session = await api.session();
    } catch (error) {
      if (error instanceof api.Refused && [401, 403].includes(error.status) && error.code !== "not_local") {
        $("main").replaceChildren(signIn(error.message, () => this.signedIn()));
        setText($("live-text"), "signed out");
        return;
      }
      this.failed(error);
      setTimeout(() => this.signedIn(), 2000);
      return;
    }
    this.recovered();
    const { pools, version } = this.session;
    const kept = new URLSearchParams(window.location.search).get("pool");
    this.pool = [kept, this.session.default_pool].find((name) => pools.some((pool) => pool.name === name)) ?? pools[0]?.name ?? this.session.default_pool;
    const names = pools.map((pool) => pool.name);
    if (!names.includes(this.pool)) names.push(this.pool);
    $("pool").replaceChildren(...names.map((name) => h("option", { value: name }, name)));
    $("pool").value = this.pool;
    $("sign-out").hidden = !this.session.has_keys;
    $("to-playground").hidden = !this.session.has_api;
    setText($("about"), `tokenbus ${version} · ${this.session.has_keys ? `roles: ${this.session.roles.join(", ")}` : "open to this machine alone"}`);
    this.views = { overview: new Overview(this), jobs: new Jobs(this), letters: new Letters(this), playground: new Playground(this) };
    this.view = "";
    this.show();
    this.look();
  }

  choosePool(name) {
    this.pool = name;
    this.series = new Series();
    this.figures = null;
    const url = new URL(window.location.href);
    url.searchParams.set("pool", name);
    window.history.replaceState(null, "", url);
    this.views.overview = new Overview(this);
    const shown = this.view;
    this.view = "";
    if (shown === "jobs") this.go("#/jobs");
    this.show();
    this.look();
  }

  show() {
    if (!this.session) return;
    const [path, query] = window.location.hash.replace(/^#\/?/, "").split("?");
    const [name, ...rest] = path.split("/").map(decodeURIComponent);
    const chosen = this.views[name] && (name !== "playground" || this.session.has_api) ? name : "overview";
    if (chosen !== this.view) {
      this.views[this.view]?.close?.();
      this.view = chosen;
      $("main").replaceChildren(this.views[chosen].node);
      for (const link of document.querySelectorAll(".bar nav a")) {
        if (link.dataset.view === chosen) link.setAttribute("aria-current", "page");
        else link.removeAttribute("aria-current");
      }
      document.title = `${{ overview: "Overview", jobs: "Jobs", letters: "Dead letters", playground: "Playground" }[chosen]} · tokenbus`;
    }
    this.views[chosen].open?.(rest, new URLSearchParams(query ?? ""));
    if (chosen === "overview" && this.figures) this.views.overview.update(this.figures, this.series);
  }

  // Look once, and again a second later for as long as the page is seen.
  async look() {
    if (this.looking) return;
    this.looking = true;
    clearTimeout(this.timer);
    const { pool } = this;
    try {
      const figures = await api.figures(pool, this.series.since);
      if (pool === this.pool) this.take(figures);
      this.recovered();
    } catch (error) {
      this.failed(error);
    } finally {
      this.looking = false;
      const pause = Math.min(MAX_PAUSE_MS, LOOK_MS * 2 ** Math.min(this.failures, 4));
      if (!document.hidden && this.session) this.timer = setTimeout(() => this.look(), pool === this.pool ? pause : 0);
    }
  }

  take(figures) {
    this.series.take(figures.samples);
    figures.samples = [];
    this.figures = figures;
    this.drift = figures.at_ms - Date.now();
    if (this.view === "overview") this.views.overview.update(figures, this.series);
    // What the page measures itself by.
    if (!performance.getEntriesByName("figures").length) performance.mark("figures");
    const letters = $("num-letters");
    letters.hidden = !figures.num_letters;
    setText(letters, String(figures.num_letters));
    const isPaused = figures.paused_for_s !== null;
    $("pause").hidden = !this.mayAct;
    setText($("pause"), isPaused ? "Resume pool" : "Pause pool");
    const worst = figures.conditions.find((each) => each.level === "bad");
    if ((worst?.code ?? "") !== this.worst) {
      this.worst = worst?.code ?? "";
      announce(worst ? worst.told : "Nothing needs to be acted on now.");
    }
  }

  recovered() {
    this.failures = 0;
    $("outage").hidden = true;
    $("live").dataset.state = "live";
    setText($("live-text"), this.figures ? `live · ${clock(this.figures.at_ms)}` : "live");
  }

  failed(error) {
    this.failures += 1;
    if (error instanceof api.Refused && [401, 403].includes(error.status)) {
      this.session = null;
      this.signedIn();
      return;
    }
    const why = error instanceof api.Refused ? error.message : "The gateway does not answer.";
    $("live").dataset.state = this.failures > 2 ? "lost" : "late";
    setText($("live-text"), "not live");
    if (this.failures > 1) {
      $("outage").hidden = false;
      setText($("outage"), `${why} ${this.figures ? `What is shown is of ${clock(this.figures.at_ms)}.` : ""} Trying again.`);
    }
  }

  async act(name, target = "", tenant = "") {
    try {
      const done = await api.act(this.pool, name, target, tenant);
      this.look();
      return done;
    } catch (error) {
      await ask("It was not done", error instanceof api.Refused ? error.message : "The gateway did not answer.", [["", "Close", "primary"]]);
      return null;
    }
  }

  async pause() {
    const isPaused = this.figures?.paused_for_s !== null;
    if (!isPaused) {
      const answer = await ask(`Pause the pool ${this.pool}?`, "Workers take no more jobs until it is resumed. Jobs are accepted and wait; those that run go on.", [["", "Leave it"], ["yes", "Pause it", "danger"]]);
      if (answer !== "yes") return;
    }
    if (await this.act(isPaused ? "resume" : "pause")) announce(isPaused ? "The pool goes on" : "The pool is paused");
  }

  async drain(worker, isDrained) {
    if (isDrained) {
      const answer = await ask(`Drain ${worker}?`, "It takes no more jobs; those that it holds go on to their end. It stays alive and can be undrained, or stopped once it is empty.", [["", "Leave it"], ["yes", "Drain it", "danger"]]);
      if (answer !== "yes") return;
    }
    if (await this.act(isDrained ? "drain" : "undrain", worker)) announce(isDrained ? "The worker is drained" : "The worker takes jobs again");
  }

  changeTheme() {
    const isDark = (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
    document.documentElement.dataset.theme = isDark ? "light" : "dark";
    localStorage.setItem(THEME, document.documentElement.dataset.theme);
    announce(isDark ? "Light" : "Dark");
  }

  async help() {
    const isOn = localStorage.getItem(SINGLE_KEYS) !== "off";
    if (await showKeys(isOn)) localStorage.setItem(SINGLE_KEYS, isOn ? "off" : "on");
  }

  onKey(event) {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    const isTyping = event.target.closest("input, textarea, select, dialog");
    if (event.key === "Escape" && this.view === "jobs" && !event.target.closest("dialog") && window.location.hash.startsWith("#/jobs/")) {
      this.go("#/jobs");
      return;
    }
    if (isTyping || !this.session || localStorage.getItem(SINGLE_KEYS) === "off") return;
    const links = [...document.querySelectorAll(".bar nav a:not([hidden])")];
    const link = links[Number.parseInt(event.key, 10) - 1];
    if (link) link.click();
    else if (event.key === "t") this.changeTheme();
    else if (event.key === "?") this.help();
    else if (event.key === "/") {
      event.preventDefault();
      this.go("#/jobs");
      // The event of the changed place comes later, at a time of the browser's own.
      this.show();
      $("search")?.focus();
    }
  }
}

const theme = localStorage.getItem(THEME);
if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
const page = new Page();
page.start();
