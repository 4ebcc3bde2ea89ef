/** The controls that stand for a setting each: what is chosen in them is a setting, and the other way round. */

const SLIDERS = ["eagerness", "rate", "pause", "temperature"];
const SELECTS = ["interruptible", "compare"];
const THEMES = ["auto", "light", "dark"];

/** Bind them to `settings`; `$` finds an element by its id. */
export function controls(settings, $) {
  for (const key of [...SLIDERS, "seed"]) {
    const { least, most, step } = settings.range(key);
    Object.assign($(key), { min: least, max: most, step });
  }
  for (const key of [...SLIDERS, ...SELECTS, "seed", "system"]) {
    $(key).value = String(settings.get(key));
    tell(key);
    $(key).addEventListener("input", () => tell(key));
    $(key).addEventListener("change", () => settings.set(key, $(key).value));
  }
  $("theme").addEventListener("click", () => {
    settings.set("theme", THEMES[(THEMES.indexOf(settings.get("theme")) + 1) % THEMES.length]);
  });

  function tell(key) {
    const output = document.querySelector(`label[for="${key}"] output`);
    if (output !== null) output.textContent = $(key).value;
  }
}
