// Words of the pages in the language that was chosen, or that the browser asks for.

import en from "./i18n/en.js";
import zh from "./i18n/zh.js";

const TABLES = { en, zh };
export const LANGUAGES = Object.keys(TABLES);

let language = "en";

/** Language of a browser that has made no choice. */
export function preferredLanguage() {
  return (navigator.language ?? "en").toLowerCase().startsWith("zh") ? "zh" : "en";
}

/** Takes a language for all that is drawn from now on. */
export function setLanguage(chosen) {
  language = chosen in TABLES ? chosen : preferredLanguage();
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
}

export function currentLanguage() {
  return language;
}

/** A text with its `{values}` filled in. */
export function t(key, values = {}) {
  const text = TABLES[language][key] ?? en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/** A number as the language writes it. */
export function number(value, digits = 0) {
  return value.toLocaleString(document.documentElement.lang, {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  });
}

/** Seconds as people read them: 12 ms, 1.24 s, 75 s. */
export function seconds(value) {
  if (value < 0.9995) return `${number(1000 * value, value < 0.00995 ? 1 : 0)} ms`;
  return `${number(value, value < 9.995 ? 2 : 1)} s`;
}
