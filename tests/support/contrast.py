"""Text on a page that has too little contrast (WCAG 2 AA: at least 4.5 to 1, but for controls that are disabled)."""

from study_browser import Visitor

_SCRIPT = """
const light = (c) => { const f = c.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * f[0] + .7152 * f[1] + .0722 * f[2]; };
const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
const low = [];
for (const one of document.querySelectorAll(arguments[0] + " *")) {
  const own = [...one.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own || !one.checkVisibility() || one.matches(".unseen, .unseen *, option, [disabled], [disabled] *")) continue;
  let back = one; let paint = rgb(getComputedStyle(back).backgroundColor);
  while (paint[3] === 0) { back = back.parentElement; paint = back ? rgb(getComputedStyle(back).backgroundColor)
    : rgb(getComputedStyle(document.documentElement).backgroundColor); }
  const [a, b] = [light(rgb(getComputedStyle(one).color).slice(0, 3)), light(paint.slice(0, 3))].sort((x, y) => y - x);
  if ((a + .05) / (b + .05) < 4.5) low.push(one.outerHTML.slice(0, 120));
}
return low;
"""


def low_contrast(visitor: Visitor, root: str) -> list[str]:
    """Return the elements with text below a CSS selector whose contrast is too low, as the beginning of their HTML."""
    return list(visitor.script(_SCRIPT, root))
