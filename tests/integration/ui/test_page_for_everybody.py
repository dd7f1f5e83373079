"""The page on a phone, for a screen reader, and by the keyboard alone."""

from pathlib import Path

import pytest

from tests.integration.ui.chat_page import ask
from tests.support.chromium import Page


def test_a_phone_shows_all_of_it_in_the_dark(page: Page, shots: Path) -> None:
    page.prefer("dark")
    page.resize(390, 800)
    ask(page, "What is deep learning?")
    assert page.run("document.documentElement.dataset.theme") == "dark"
    assert page.run("document.documentElement.scrollWidth") <= 390
    assert page.run("document.querySelector('#settings').checkVisibility()") is False
    page.screenshot(shots / "phone.png")
    page.click("#open-settings")
    assert page.run("document.querySelector('#settings').checkVisibility()") is True
    assert (
        page.run("document.querySelector('#open-settings').getAttribute('aria-expanded')") == "true"
    )
    assert page.run("document.activeElement.id") == "close-settings"
    page.press("Escape")
    assert page.run("document.querySelector('#settings').checkVisibility()") is False
    assert page.run("document.activeElement.id") == "open-settings"
    page.click("#theme")
    assert page.run("document.documentElement.dataset.theme") == "light"


@pytest.mark.parametrize("name", ["chat", "embeddings", "server"])
def test_a_screen_reader_finds_a_name_for_every_control(page: Page, name: str) -> None:
    page.click(f"[data-page={name}]")
    page.fill("#format", "json_schema")
    roles = {"button", "link", "textbox", "combobox", "checkbox", "spinbutton", "meter", "table"}
    nameless = [role for role, label in page.accessible() if role in roles and not label.strip()]
    assert nameless == []
    assert {("heading", page.text("#model-name"))} <= set(page.accessible())


def test_the_keyboard_reaches_the_message_without_a_mouse(page: Page) -> None:
    reached = []
    for _ in range(12):
        page.press("Tab")
        reached.append(page.run("document.activeElement.id || document.activeElement.className"))
    assert reached[0] == "skip"
    assert "prompt" in reached
