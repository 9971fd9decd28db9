"""Settings in the address of the page, so that a link opens the same state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import gradio as gr

_WRITE = """(...values) => {
  const names = NAMES, defaults = DEFAULTS, query = new URLSearchParams(location.search);
  names.forEach((name, index) => {
    const value = Array.isArray(values[index]) ? values[index].join(",") : values[index];
    if (value === null || String(value) === String(defaults[index])) query.delete(name);
    else query.set(name, value);
  });
  const text = query.toString();
  history.replaceState(history.state, "", text ? "?" + text : location.pathname);
}"""


def keep_in_address(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Write the values of components into the address when they change, but those that are at their default.

    Args:
        settings: components by the name in the address.
        defaults: their defaults, by the same names.
    """
    values = [",".join(one) if isinstance(one, list) else one for one in (defaults[name] for name in settings)]
    js = _WRITE.replace("NAMES", json.dumps(list(settings))).replace("DEFAULTS", json.dumps(values))
    gr.on(
        [component.change for component in settings.values()],
        None,
        list(settings.values()),
        None,
        js=js,
        api_visibility="private",
    )


def read_address(request: gr.Request, settings: Mapping[str, Any]) -> dict[Any, Any]:
    """Return the values of components that the address gives, without what does not fit a component, and without the
    choices of styles (`StyleChoice.from_address`)."""
    query = request.query_params
    found = {}
    for name, component in settings.items():
        if name in query:
            value = fitting(component, query[name])
            if value is not None:
                found[component] = value
    return found


def fitting(component: Any, value: Any) -> Any:
    """Return a value as a component takes it; None if it does not fit, or is None itself.

    Args:
        component: a slider, a number, a dropdown with one choice, or a text box.
        value: a text, or a plain value of a record.
    """
    match component:
        case gr.Slider() | gr.Number():
            try:
                number = float(value)
            except (TypeError, ValueError):
                return None
            if not (component.minimum or 0) <= number <= (component.maximum or 2**53):
                return None
            return int(number) if number == int(number) else number
        case gr.Dropdown() if not component.multiselect:
            return next((choice for _, choice in component.choices if str(choice) == str(value)), None)
        case gr.Textbox():
            return value[:2000] if isinstance(value, str) else None
    return None
