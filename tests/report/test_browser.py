"""The page in a real browser: it draws, complains of nothing, shows values, and fits on a phone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_bsqh.report import write_report
from tests.report import browser
from tests.report.made_runs import make_run

pytestmark = pytest.mark.skipif(bool(browser.missing()), reason=f"needs a browser: {browser.missing()}")


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, str]:
    """Addresses of a report of one run and of one of two runs with many layers and long names."""
    folder = tmp_path_factory.mktemp("runs")
    layers = [f"network.encoder.stages.{i}.attention.query_key_value_projection" for i in range(20)]
    settings = {"trainer": {"strategy": {"class_path": "lightning_bsqh.BSQHStrategy" * 5}}}
    one = make_run(folder / "one")
    two = [make_run(folder / f"a_long_name_of_a_run_{i}", layers=layers, settings=settings, scale=i) for i in (1, 2)]
    return {"one": write_report([one]).as_uri(), "two": write_report(two).as_uri()}


def _open(driver: Any, address: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    driver.get(address)
    drawn = "return [...document.querySelectorAll('.chart')].every((box) => box.querySelector('.main-svg'))"
    WebDriverWait(driver, 60).until(lambda _: driver.execute_script(drawn))


@pytest.fixture(scope="module")
def desktop(tmp_path_factory) -> Iterator[Any]:
    with browser.chromium(tmp_path_factory.mktemp("profile"), 1280) as driver:
        yield driver


@pytest.fixture(scope="module")
def phone(tmp_path_factory) -> Iterator[Any]:
    with browser.chromium(tmp_path_factory.mktemp("profile"), 380) as driver:
        yield driver


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("window", ["desktop", "phone"])
def test_draws_without_complaint_and_fits(window: str, name: str, pages, request) -> None:
    driver = request.getfixturevalue(window)
    driver.get_log("browser")  # forgets what is in it
    _open(driver, pages[name])
    assert driver.get_log("browser") == []
    count = "return document.querySelectorAll('.chart .scatterlayer .trace').length"
    expected = "return charts.reduce((sum, chart) => sum + chart.data.length, 0)"
    # The axis of epochs has a trace of its own, without a point.
    expected += " + charts.filter((chart) => chart.layout.xaxis2).length"
    assert driver.execute_script(count) == driver.execute_script(expected) > 10
    images = "return [...document.images].every((image) => image.complete && image.naturalWidth > 0)"
    assert driver.execute_script(images)
    width = driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1] == (1280 if window == "desktop" else 380)
    assert driver.execute_script("return performance.getEntriesByType('resource').length") == driver.execute_script(
        "return performance.getEntriesByType('resource').filter((entry) => entry.name.startsWith('data:')).length"
    )


def test_one_column_on_a_phone_and_two_on_a_desktop(desktop, phone, pages) -> None:
    lefts = "return new Set([...document.querySelectorAll('.chart')].map((b) => b.getBoundingClientRect().left)).size"
    for driver, columns in ((desktop, 2), (phone, 1)):
        _open(driver, pages["one"])
        assert driver.execute_script(lefts) == columns


@pytest.mark.parametrize("name", ["one", "two"])
def test_hovering_shows_values(desktop, pages, name: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    _open(desktop, pages[name])
    titles = desktop.execute_script("return charts.map((chart) => chart.title)")
    box = desktop.find_element("id", f"chart-{titles.index('Augmentation ε')}")
    desktop.execute_script("arguments[0].scrollIntoView({block: 'center'})", box)
    plot = box.find_element("css selector", ".nsewdrag")
    ActionChains(desktop).move_to_element(plot).perform()
    shown = WebDriverWait(desktop, 30).until(
        lambda _: desktop.execute_script("return arguments[0].querySelector('.hoverlayer').textContent", box)
    )
    # The value at the step in the middle, as the box shows it.
    data = desktop.execute_script(f"return charts[{titles.index('Augmentation ε')}].data[0]")
    values = {f"{y:.4g}" for x, y in zip(data["x"], data["y"], strict=True) if 26 <= x <= 34}
    assert any(value in shown for value in values)
    assert ("ε of the last trial" if name == "one" else "a_long_name_of_a_run_2") in shown


def test_dark_page_has_light_text_and_total(desktop, pages) -> None:
    _open(desktop, pages["one"])
    line = "return getComputedStyle(document.querySelector('#chart-3 .trace:last-child .js-line')).stroke"
    light = desktop.execute_script(line)
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    desktop.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    _open(desktop, pages["one"])
    try:
        assert light == "rgb(27, 31, 36)"
        assert desktop.execute_script(line) == "rgb(230, 237, 243)"
    finally:
        desktop.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_masks_scroll_in_their_own_box(phone, pages) -> None:
    _open(phone, pages["two"])
    boxes = "return [...document.querySelectorAll('.scroll')].every((b) => b.getBoundingClientRect().right <= 380)"
    assert phone.execute_script(boxes)


def test_address_is_a_file(pages) -> None:
    for address in pages.values():
        assert address.startswith("file://")
        assert Path(address.removeprefix("file://")).is_file()
