"""The documentation's site: builds without a warning, links lead somewhere, nothing comes from another host."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import gevent.subprocess as subprocess
import pytest

import gstalk

ROOT = Path(__file__).parent.parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --hide-scrollbars
""".split()
NO_OTHER_HOST = "--host-resolver-rules=MAP * ~NOTFOUND"
LOADING = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a page links to, what it loads, and what can be linked to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = {""}
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in LOADING and LOADING[tag] in given and given.get("rel") not in ("canonical",):
            self.loads.append(given[LOADING[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx", reason="the site needs gstalk[docs]")
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "docs", str(place)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return place


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_link_within_the_site_leads_somewhere(site, pages):
    broken = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            if target.is_dir():
                target /= "index.html"
            there = target.exists() and site in target.parents
            if not there or (target in pages and unquote(url.fragment) not in pages[target].anchors):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []
    assert len(pages) > 20


def test_no_page_loads_anything_from_another_host(site, pages):
    outside = {load for page in pages.values() for load in page.loads if urlsplit(load).netloc}
    assert outside == set()
    for path in site.rglob("*.css"):
        assert "url(http" not in path.read_text("utf-8").replace("'", "").replace('"', "")
        assert "@import" not in path.read_text("utf-8")


def test_reference_has_every_public_name(site):
    from sphinx.util.inventory import InventoryFile

    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, path: path)
    documented = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    assert {f"gstalk.{name}" for name in gstalk.__all__} - documented == set()
    for name in ("Conn.put", "Job.delete", "Producer.put_many", "Consumer.receive", "Config.retry", "Event.kind"):
        assert f"gstalk.{name}" in documented
    assert {"gstalk.testing.Server", "gstalk.testing.FaultProxy", "gstalk.otel.event_func"} <= documented


def test_changelog_and_the_house_are_in_the_site(pages):
    assert {"changelog.html", "contributing.html", "events.html", "protocol.html"} <= {path.name for path in pages}


def test_search_finds_what_somebody_searches_for(site):
    text = (site / "searchindex.js").read_text("utf-8")
    index = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))
    stemmed = ["django", "celeri", "docker", "kubernet", "sentri", "timeout", "loopexit", "wronghuberror", "redi"]
    assert [word for word in stemmed if word not in index["terms"] and word not in index["titleterms"]] == []
    headings = ["django", "docker", "kubernet", "supervisor", "systemd", "sentri", "timeout", "celeri"]
    assert [word for word in headings if word not in index["titleterms"]] == []


def test_every_example_is_shown_in_full_on_a_page_of_its_own(site):
    examples = ROOT / "examples"
    contents = (site / "examples.html").read_text("utf-8")
    for path in examples.rglob("*.py"):
        if not (source := path.read_text("utf-8").strip()):
            continue
        page = f"examples/{path.relative_to(examples).parts[0].removesuffix('.py')}.html"
        blocks = (site / page).read_text("utf-8").split('<div class="highlight-python')[1:]
        shown = [unescape(re.sub("<[^>]+>", "", f"<{each.partition('</pre>')[0]}")).strip() for each in blocks]
        assert source in shown, path.name
        assert f'href="{page}"' in contents


def test_every_page_and_example_that_is_named_is_a_link(site):
    for path in site.rglob("*.html"):
        html = re.sub(r"<a .*?</a>", "", path.read_text("utf-8"), flags=re.DOTALL)
        named = re.findall(r'<code class="docutils[^>]*>(.*?)</code>', html, re.DOTALL)
        for name in (re.sub("<[^>]+>", "", each) for each in named):
            page = re.fullmatch(r"docs/([a-z_]+)\.md", name)
            assert page is None or path.stem == page[1], f"{path.name}: {name}"


def test_names_of_python_and_gevent_are_links(site):
    html = (site / "reference" / "config.html").read_text("utf-8")
    assert "https://docs.python.org/3/library/ssl.html#ssl.SSLContext" in html
    assert "https://www.gevent.org/api/gevent.timeout.html#gevent.Timeout" in (site / "cancellation.html").read_text(
        "utf-8"
    )


def test_code_has_a_copy_button_that_leaves_out_prompts(site):
    assert "copybutton.js" in (site / "tutorial.html").read_text("utf-8")
    assert '"$ "' in next(site.rglob("copybutton.js")).read_text("utf-8").replace("'", '"')


def test_reference_says_where_the_testing_servers_listen(site):
    html = (site / "reference" / "testing.html").read_text("utf-8")
    assert [
        name for name in ("Server", "Beanstalkd", "FaultProxy") if f'id="gstalk.testing.{name}.uri"' not in html
    ] == []


@pytest.fixture
def shoot(site: Path) -> Iterator[Callable[[str, int, str], bytes]]:
    """Take a page's screenshot in a browser that reaches no other host; it is kept in build/screenshots."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    kept = ROOT / "build" / "screenshots"
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:

        def take(page: str, width: int, scheme: str) -> bytes:
            assert CHROMIUM is not None
            shot = kept / f"{page.replace('/', '-')}-{width}-{scheme}.png"
            shot.unlink(missing_ok=True)
            where = [f"--user-data-dir={profile}", f"--window-size={width},1400", f"--screenshot={shot}"]
            where += [f"--blink-settings=preferredColorScheme={['dark', 'light'].index(scheme)}"]
            url = (site / f"{page}.html").as_uri()
            subprocess.run([CHROMIUM, *FLAGS, NO_OTHER_HOST, *where, url], capture_output=True, timeout=60, check=True)
            return shot.read_bytes()

        yield take


@pytest.mark.soak
def test_pages_say_to_a_screen_reader_what_the_theme_leaves_out(site, tmp_path):
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")

    def shown(page: str) -> str:
        command = [CHROMIUM, *FLAGS, NO_OTHER_HOST, f"--user-data-dir={tmp_path}", "--dump-dom", (site / page).as_uri()]
        return subprocess.run(command, capture_output=True, timeout=60, check=True).stdout.decode("utf-8")

    html = shown("reference/job.html")
    assert '<div class="parameters">' in html
    assert "<dl>" not in html
    assert '<td data-label="how to choose">' in shown("operations.html")
    assert shown("search.html").count("<h1") == 1


@pytest.mark.soak
@pytest.mark.limit(1200)
def test_pages_show_themselves_in_a_browser(shoot, pages, site, many, figures):
    """Looking at them is a person's work; that there is something to look at, wide and narrow, is a test's."""
    names = sorted(str(path.relative_to(site))[: -len(".html")] for path in pages)
    chosen = [name for name in names if name not in ("genindex", "search", "py-modindex")]
    chosen = ["index", *(name for name in chosen if name != "index")][: many(1, len(chosen))]
    looks = [(1440, "light"), (390, "dark"), (390, "light"), (1440, "dark")][: many(1, 4)]
    sizes = {(name, *look): len(shoot(name, *look)) for name in chosen for look in looks}
    figures |= {"screenshots": len(sizes), "smallest": min(sizes.values()), "kept in": "build/screenshots"}
    assert min(sizes.values()) > 20_000  # a blank page has some 5,000 bytes
