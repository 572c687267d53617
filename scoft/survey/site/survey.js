// The whole survey in a browser: pages, ranks, and answers that stay here until the server has acknowledged them.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const PANEL = new URLSearchParams(location.search).get(DATA.panelParameter);
const BASE = `scoft-survey:${DATA.survey}:${PANEL ?? ""}`;
// From a disk there is nobody to post to, unless the survey was built with an address.
const ANSWERS_URL = DATA.answers ?? (location.protocol === "file:" ? null : new URL("answers", location.href).href);
const TRIES = 2;
const SILENCE = 20_000; // milliseconds after which a server that says nothing is asked again
const LONGEST_WAIT = 60; // seconds
const CODE_LETTERS = "ACDEFHJKMNPRTWXY"; // one for each hexadecimal digit; none is taken for another

// ----------------------------------------------------------------------------------------------------------------
// What is kept: BASE has the state, BASE:<page> a page's record. It is read anew each time: other tabs write too.
// ----------------------------------------------------------------------------------------------------------------

const memory = new Map(); // where the browser lets nothing be kept

function read(name) {
  let text = memory.get(name);
  try {
    text = localStorage.getItem(name) ?? text;
  } catch {}
  return text ? JSON.parse(text) : null;
}

function write(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
  } catch {
    memory.set(name, JSON.stringify(value));
  }
}

function remove(name) {
  memory.delete(name);
  try {
    localStorage.removeItem(name);
  } catch {}
}

function state() {
  return read(BASE) ?? { stage: "consent" };
}

function change(changes) {
  write(BASE, { ...state(), ...changes });
}

// ranks: by item, then picture; milliseconds: so far; answer: what was given last, with its revision; acknowledged: the
// revision that the server has; refused: why it does not take it.
function record(page) {
  return read(`${BASE}:${page}`) ?? { ranks: {}, milliseconds: 0, answer: null, acknowledged: 0, refused: null };
}

function records() {
  return DATA.pages.map((_, page) => [page, record(page)]);
}

function keep(page, changes) {
  write(`${BASE}:${page}`, { ...record(page), ...changes });
}

function forget() {
  DATA.pages.forEach((_, page) => remove(`${BASE}:${page}`));
}

// ----------------------------------------------------------------------------------------------------------------
// Chance
// ----------------------------------------------------------------------------------------------------------------

function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// The items in an order that the words alone decide, each order as likely as the others.
function shuffled(items, words) {
  let hash = 0x811c9dc5; // FNV-1a, then a counter through a mixer of 32 bits
  for (const letter of words) hash = Math.imul(hash ^ letter.codePointAt(0), 0x01000193);
  function below(limit) {
    hash = (hash + 0x9e3779b9) | 0;
    let mixed = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
    mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
    return Math.floor(((mixed ^ (mixed >>> 16)) >>> 0) / 2 ** 32 * limit);
  }
  const found = [...items];
  for (let last = found.length - 1; last > 0; last--) {
    const other = below(last + 1);
    [found[last], found[other]] = [found[other], found[last]];
  }
  return found;
}

function pageOrder() {
  return shuffled(DATA.pages.keys(), `${state().participant}:pages`);
}

function pictureOrder(page) {
  return shuffled(DATA.pages[page].pictures, `${state().participant}:${page}`);
}

function completionCode() {
  const letters = Array.from(state().participant.slice(0, 8), (digit) => CODE_LETTERS[parseInt(digit, 16)]).join("");
  return DATA.completionCode ?? `${letters.slice(0, 4)}-${letters.slice(4)}`;
}

// ----------------------------------------------------------------------------------------------------------------
// Words and elements
// ----------------------------------------------------------------------------------------------------------------

function strings() {
  const wanted = [state().language, new URLSearchParams(location.search).get("lang"), ...navigator.languages];
  for (const each of wanted) {
    const found = DATA.strings.find(({ language }) => language === each || language === each?.split("-")[0]);
    if (found) return found;
  }
  return DATA.strings[0];
}

function filled(text, values) {
  const all = { culture: strings().culture, pages: DATA.pages.length, last: DATA.pages[0].pictures.length, ...values };
  return text.replace(/\{(\w+)\}/g, (whole, name) => all[name] ?? whole);
}

function say(name, values) {
  return filled(strings().texts[name], values);
}

function letter(position) {
  return Array.from(strings().texts.letters)[position];
}

// An element; children that are text stay text, whatever they hold.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat());
  return element;
}

function button(name, onclick, kind = "plain") {
  return make("button", { type: "button", class: kind, id: `do-${name}`, onclick }, say(name));
}

function paragraphs(...texts) {
  return texts.map((text) => make("p", {}, text));
}

function announce(text) {
  document.getElementById("said").textContent = text;
}

// ----------------------------------------------------------------------------------------------------------------
// Pages
// ----------------------------------------------------------------------------------------------------------------

let displaced = null; // {page, item, by, picture, rank}: whose rank the last choice took, should that move on

const STAGES = {
  consent: consentPage,
  declined: () => [heading("declined_title"), ...paragraphs(say("declined")), button("back", () => go("consent"))],
  check: checkPage,
  failed: () => [heading("failed_title"), ...paragraphs(say("failed"))],
  pages: rankingPage,
  end: endPage,
  withdraw: withdrawPage,
  withdrawing: () => [heading("withdraw_title"), ...paragraphs(say("withdrawing"))],
  withdrawn: () => [heading("withdrawn_title"), ...paragraphs(say("withdrawn"))],
};

function go(stage, changes = {}) {
  change({ stage, ...changes });
  show();
}

function show({ focus = true } = {}) {
  const { stage, at = 0 } = state();
  const { language, dir } = strings();
  Object.assign(document.documentElement, { lang: language, dir });
  document.title = say("title");
  document.getElementById("head").replaceChildren(...headOf(stage, at));
  document.getElementById("page").replaceChildren(...STAGES[stage]());
  const leaves = stage === "pages" || stage === "end";
  document.getElementById("foot").replaceChildren(
    ...(stage === "pages" ? [button("stop", () => go("end"))] : []),
    ...(leaves ? [button("withdraw", () => go("withdraw", { from: stage }))] : []),
  );
  announce("");
  if (focus) {
    scrollTo(0, 0);
    document.getElementById("page").focus({ preventScroll: true });
  }
}

function headOf(stage, at) {
  const found = [];
  if (stage === "pages") {
    const text = say("progress", { page: at + 1 });
    const bar = make("progress", { max: DATA.pages.length, value: at, "aria-labelledby": "progress" });
    found.push(make("p", { class: "progress" }, make("span", { id: "progress" }, text), bar));
  }
  if (DATA.strings.length > 1) {
    const options = DATA.strings.map(({ language, name }) =>
      make("option", { value: language, lang: language, selected: language === strings().language }, name),
    );
    const onchange = (event) => (change({ language: event.target.value }), show({ focus: false }));
    found.push(make("label", { class: "language" }, `${say("language")} `, make("select", { id: "language", onchange }, options)));
  }
  return found;
}

function heading(name) {
  return make("h1", {}, say(name));
}

function consentPage() {
  const own = DATA.consent?.map((text) => make("p", { dir: "auto" }, text));
  const start = () => go("check", { participant: state().participant ?? randomId(), tries: state().tries ?? 0 });
  return [
    heading("title"),
    ...(own ?? paragraphs(say("consent_what"), say("consent_who"), say("consent_kept"), say("consent_free"))),
    make("div", { class: "actions" }, button("agree", start, "main"), button("decline", () => go("declined"))),
  ];
}

function checkPage() {
  const right = strings().check[0];
  const options = shuffled(strings().check, state().participant).map((text) =>
    make("label", { class: "option" }, make("input", { type: "radio", name: "check", value: text }), make("span", {}, text)),
  );
  const answer = () => {
    const chosen = document.querySelector("input[name=check]:checked");
    if (!chosen) return announce(say("check_choose"));
    if (chosen.value === right) return go("pages", { at: state().at ?? 0 });
    const tries = (state().tries ?? 0) + 1;
    if (tries >= TRIES) return go("failed", { tries });
    change({ tries });
    announce(say("check_again"));
  };
  return [
    heading("check_title"),
    ...paragraphs(say("how_pictures"), say("how_ranks"), say("how_once")),
    make("fieldset", {}, make("legend", {}, say("check_question")), options),
    make("div", { class: "actions" }, button("next", answer, "main")),
  ];
}

function rankingPage() {
  const { at } = state();
  const page = pageOrder()[at];
  const pictures = pictureOrder(page);
  const started = performance.now() - record(page).milliseconds;
  const move = (to) => go(to < DATA.pages.length ? "pages" : "end", { at: Math.min(to, DATA.pages.length - 1) });
  const next = () => {
    const missing = firstMissing(page, pictures);
    if (missing === null) return give(page, pictures), move(at + 1);
    announce(say("missing", { item: strings().items[missing.item].title, picture: letter(missing.position) }));
    document.getElementById(radioId(missing.item, missing.position, 1)).focus();
  };
  const skip = () => (give(page, pictures), move(at + 1));
  return [
    make("h1", { class: "prompt" }, make("span", {}, say("prompt")), " ", make("bdi", {}, DATA.pages[page].prompt)),
    make("div", { class: "pictures" }, pictures.map(figure)),
    make("div", { class: "items" }, DATA.items.map((item) => itemTable(item, page, pictures, started))),
    make(
      "div",
      { class: "actions" },
      button("next", next, "main"),
      button("skip", skip),
      at > 0 ? button("back", () => move(at - 1)) : [],
    ),
  ];
}

function image(name, alt) {
  return make("img", { src: `pictures/${name}.png`, alt, width: DATA.size[0], height: DATA.size[1] });
}

function figure(name, position) {
  const label = say("picture", { picture: letter(position) });
  return make("figure", {}, image(name, label), make("figcaption", { "aria-hidden": "true" }, letter(position)));
}

function radioId(item, position, rank) {
  return `${item}-${position}-${rank}`;
}

function itemTable(item, page, pictures, started) {
  const { title, question, first, last } = strings().items[item];
  const ranks = pictures.map((_, index) => index + 1);
  const words = { 1: first, [ranks.length]: last };
  const head = ranks.map((rank) =>
    make("th", { scope: "col" }, String(rank), make("small", {}, words[rank] ? filled(words[rank]) : "")),
  );
  const rows = pictures.map((picture, position) => {
    const cells = ranks.map((rank) => {
      const radio = make("input", {
        type: "radio",
        name: `${item}-${position}`,
        id: radioId(item, position, rank),
        checked: record(page).ranks[item]?.[picture] === rank,
        "aria-label": say("choice", { picture: letter(position), rank }),
        onchange: () => choose({ item, page, pictures, picture, rank, started }),
      });
      return make("td", {}, make("label", {}, radio));
    });
    return make("tr", {}, make("th", { scope: "row" }, image(picture, ""), letter(position)), cells);
  });
  return make(
    "fieldset",
    { id: `item-${item}` },
    make("legend", {}, title),
    make("p", { id: `question-${item}` }, filled(question)),
    make(
      "table",
      { "aria-describedby": `question-${item}` },
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, say("pictures")), head)),
      make("tbody", {}, rows),
    ),
  );
}

// A rank is of one picture. Who moves on through the ranks, as arrow keys do, gives back what was taken on the way.
function choose({ item, page, pictures, picture, rank, started }) {
  const ranks = record(page).ranks;
  const own = { ...ranks[item] };
  const told = [];
  own[picture] = rank;
  if (displaced?.page === page && displaced.item === item && displaced.by === picture) {
    const free = !Object.values(own).includes(displaced.rank);
    if (free && !own[displaced.picture]) {
      own[displaced.picture] = displaced.rank;
      told.push(say("returned", { picture: letter(pictures.indexOf(displaced.picture)), rank: displaced.rank }));
    }
  }
  const other = pictures.find((each) => each !== picture && own[each] === rank);
  displaced = other ? { page, item, by: picture, picture: other, rank } : null;
  if (other) {
    delete own[other];
    told.push(say("cleared", { picture: letter(pictures.indexOf(other)), rank }));
  }
  keep(page, { ranks: { ...ranks, [item]: own }, milliseconds: Math.round(performance.now() - started) });
  setRadios(page, pictures);
  announce(told.join(" "));
}

// The radio buttons as the record has them.
function setRadios(page, pictures) {
  const { ranks } = record(page);
  for (const item of DATA.items)
    pictures.forEach((picture, position) =>
      pictures.forEach((_, index) => {
        const radio = document.getElementById(radioId(item, position, index + 1));
        if (radio) radio.checked = ranks[item]?.[picture] === index + 1;
      }),
    );
}

function firstMissing(page, pictures) {
  const { ranks } = record(page);
  for (const item of DATA.items) {
    const position = pictures.findIndex((picture) => !ranks[item]?.[picture]);
    if (position >= 0) return { item, position };
  }
  return null;
}

function endPage() {
  const { at = 0 } = state();
  const left = records().filter(([, { answer }]) => !answer).length;
  const more = left && [...paragraphs(say("end_left", { left })), button("resume", () => go("pages", { at }))];
  return [
    heading("end_title"),
    ...paragraphs(say("end")),
    make("p", { class: "code" }, `${say("code")} `, make("strong", { id: "code", dir: "ltr" }, completionCode())),
    make("p", { id: "arrived" }, arrived()),
    make("div", { class: "actions" }, button("download", download), more || []),
  ];
}

function arrived() {
  if (ANSWERS_URL === null) return say("from_disk");
  const refused = records().filter(([, { refused }]) => refused).length;
  if (refused) return say("refused", { count: refused });
  return pending().length ? say("pending", { count: pending().length }) : say("all_arrived");
}

function withdrawPage() {
  return [
    heading("withdraw_title"),
    ...paragraphs(say("withdraw_what")),
    make(
      "div",
      { class: "actions" },
      button("withdraw_sure", withdraw, "main"),
      button("back", () => go(state().from ?? "pages")),
    ),
  ];
}

// ----------------------------------------------------------------------------------------------------------------
// Answers on their way
// ----------------------------------------------------------------------------------------------------------------

// Make what is ranked on a page the answer to it, of a higher revision than the one before.
function give(page, pictures) {
  const { ranks, milliseconds, answer } = record(page);
  const all = Object.fromEntries(
    DATA.items.map((item) => [item, Object.fromEntries(pictures.map((each) => [each, ranks[item]?.[each] ?? null]))]),
  );
  if (answer && JSON.stringify(answer.ranks) === JSON.stringify(all)) return;
  const fresh = {
    survey: DATA.survey,
    participant: state().participant,
    page,
    revision: (answer?.revision ?? 0) + 1,
    language: strings().language,
    milliseconds,
    order: pictures,
    ranks: all,
  };
  keep(page, { answer: fresh, refused: null });
  send();
}

function pending() {
  return records().filter(([, { answer, acknowledged, refused }]) => answer && !refused && acknowledged < answer.revision);
}

function download() {
  const lines = records().flatMap(([, { answer }]) => (answer ? [`${JSON.stringify(answer)}\n`] : []));
  const href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
  make("a", { href, download: `answers-${completionCode()}.jsonl` }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}

function withdraw() {
  forget();
  displaced = null;
  if (ANSWERS_URL === null) write(BASE, { stage: "withdrawn", language: state().language });
  else change({ stage: "withdrawing" });
  show();
  send();
}

let sending = false;
let failures = 0;
let timer = null;

// Post what is pending, and come again later as long as the server does not answer.
async function send() {
  if (sending || ANSWERS_URL === null) return;
  clearTimeout(timer);
  sending = true;
  let later = false;
  try {
    if (state().stage === "withdrawing") later = !(await sendWithdrawal());
    else
      for (let [next] = pending(); next && !later; [next] = pending()) later = !(await sendAnswer(...next));
  } finally {
    sending = false;
  }
  failures = later ? failures + 1 : 0;
  if (later) timer = setTimeout(send, Math.min(LONGEST_WAIT, 2 ** failures) * (500 + 500 * Math.random()));
  const place = document.getElementById("arrived");
  if (place) place.textContent = arrived();
}

// Whether the server has decided about it; else it is to be posted again.
async function sendAnswer(page, { answer }) {
  const { status, said } = await post("answers", { answer, panel: PANEL });
  const current = record(page).answer;
  if (!current) return true; // withdrawn meanwhile
  if (status === 200) keep(page, { acknowledged: answer.revision });
  else if (status === 410) leave();
  else if (status === 409 && said?.error === "conflict") {
    // two tabs gave the page at once: the answer that is here now becomes the later one
    keep(page, { answer: { ...current, revision: said.revision + 1 } });
  } else if ([400, 409, 413].includes(status)) keep(page, { refused: said?.error ?? String(status) });
  else return false;
  return true;
}

async function sendWithdrawal() {
  const { status } = await post("withdraw", { survey: DATA.survey, participant: state().participant });
  if (status === 200) leave();
  return status === 200;
}

function leave() {
  forget();
  write(BASE, { stage: "withdrawn", language: state().language });
  show();
}

// The status, 0 where there was no answer, and what was said with it.
async function post(name, content) {
  const gaveUp = new AbortController();
  const silence = setTimeout(() => gaveUp.abort(), SILENCE);
  try {
    const response = await fetch(new URL(name, ANSWERS_URL), {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(content),
      credentials: "omit",
      signal: gaveUp.signal,
    });
    return { status: response.status, said: await response.json().catch(() => null) };
  } catch {
    return { status: 0, said: null };
  } finally {
    clearTimeout(silence);
  }
}

// Another tab of the same participant has written: follow it, without taking the focus from what is done here.
addEventListener("storage", ({ key }) => {
  if (!key?.startsWith(BASE)) return;
  const { stage, at } = state();
  if (key !== BASE && stage === "pages") setRadios(pageOrder()[at], pictureOrder(pageOrder()[at]));
  else show({ focus: false });
});
addEventListener("online", () => send());
show({ focus: false });
send();
