"""The page as a whole: its tabs, its look and its language."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import gradio as gr

from inst.studio.page.client import build_client_endpoints
from inst.studio.page.generate import build_generate
from inst.studio.page.learn import build_learn
from inst.studio.page.library import build_library
from inst.studio.page.restore import build_restore
from inst.studio.page.texts import TEXTS, Language
from inst.studio.page.transfer import build_transfer
from inst.studio.studio import Studio

_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Noto Sans", "PingFang SC", "Microsoft YaHei", "sans-serif"]
_CACHE_SECONDS = 86400
_TABS = ("transfer", "learn", "generate", "library")

# The first tab tells that it is shown before the one of the address is opened.
_KEEP_TAB = """() => {
  if (window.instTab && window.instTab !== "ID") return;
  window.instTab = null;
  const query = new URLSearchParams(location.search);
  if ("ID" === "transfer") query.delete("tab"); else query.set("tab", "ID");
  const text = query.toString();
  history.replaceState(history.state, "", text ? "?" + text : location.pathname);
}"""

CSS = (files("inst.studio.page") / "style.css").read_text(encoding="utf-8")

THEME = gr.themes.Soft(
    primary_hue="indigo",
    secondary_hue="indigo",
    neutral_hue="slate",
    font=_FONTS,
    font_mono=["ui-monospace", "monospace"],
).set(
    # The theme's own greys and blues have less contrast than WCAG 2 AA asks for.
    block_label_text_color="*primary_700",
    block_title_text_color="*primary_700",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    link_text_color="*primary_700",
    link_text_color_dark="*primary_300",
)

# A screen reader says what happens to a job when it happens.
_READ_OUT = """() => {
  for (const one of document.querySelectorAll("[id$=-status], #library-message"))
    one.setAttribute("aria-live", "polite");
}"""


def build_page(studio: Studio, language: Language) -> gr.Blocks:
    """Make the page in one language. The look is given where it is mounted (`look`)."""
    texts = TEXTS[language]
    other = "en" if language == "zh" else "zh"
    with gr.Blocks(
        title=texts.title, analytics_enabled=False, delete_cache=(_CACHE_SECONDS // 4, _CACHE_SECONDS)
    ) as page:
        gr.HTML(
            f'<header class="inst-head"><h1>{texts.title}</h1><span>{texts.subtitle}</span>'
            f'<a href="../{other}/" lang="{other}" id="inst-language" '
            f'onclick="this.href = this.pathname + location.search">{texts.other_language}</a></header>'
        )
        labels = texts.transfer, texts.learn, texts.generate, texts.library
        builders = build_transfer, build_learn, build_generate, build_library
        tabs = {}
        with gr.Tabs() as bar:
            for id, label, build in zip(_TABS, labels, builders, strict=True):
                with gr.Tab(label, id=id, elem_id=f"tab-{id}") as tab:
                    tabs[id] = tab, build(studio, texts)
        for tab, built in tabs.values():
            page.load(
                built.opened,
                None,
                built.outputs,
                show_progress="hidden",
                concurrency_limit=None,
                api_visibility="private",
            )
            if built.choice is not None:
                saved = built.choice.saved
                tab.select(built.choice.renewed, saved, saved, queue=False, api_visibility="private")
        library_tab, library = tabs["library"]
        library_tab.select(library.opened, None, library.outputs, show_progress="hidden", api_visibility="private")
        build_restore(studio, texts, {id: built for id, (_, built) in tabs.items()}, bar)
        build_client_endpoints(studio)
        page.load(None, None, None, js=_READ_OUT, api_visibility="private")
        page.load(_open_tab, None, bar, queue=False, api_visibility="private")
        for id, (tab, _) in tabs.items():
            tab.select(None, None, None, js=_KEEP_TAB.replace("ID", id), api_visibility="private")
    return page


def _open_tab(request: gr.Request) -> Any:
    """Open the tab that the address names."""
    tab = request.query_params.get("tab", "")
    return gr.Tabs(selected=tab if tab in _TABS else _TABS[0])


def look() -> dict[str, Any]:
    """Return theme and styles of the page, as arguments of `gr.mount_gradio_app`."""
    return {"theme": THEME, "css": CSS}


def early_script(language: Language) -> str:
    """Return the script that must run before Gradio's own.

    Gradio's words follow the language of the browser; here they follow the page. And the first tab tells that it is
    shown before the tab of the address is opened.
    """
    code = "zh-CN" if language == "zh" else "en"
    return (
        f"document.documentElement.lang = '{code}';"
        f"Object.defineProperty(navigator, 'language', {{get: () => '{code}'}});"
        f"Object.defineProperty(navigator, 'languages', {{get: () => ['{code}']}});"
        f"window.instTab = {json.dumps(_TABS)}.find(id => id === new URLSearchParams(location.search).get('tab'));"
    )
