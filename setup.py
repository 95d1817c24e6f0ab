"""The package's metadata. pyproject.toml names the build system and holds the tools' settings, nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

# Where the repository is on its owners' forge, without a slash at the end. This is the one place that says so: with it
# the package has its Project-URLs, and its page on the index links to files there; without it, it links to none.
HOME = ""
EMAIL = ""  # where its owners can be written to; CONTRIBUTING.md lists all that is theirs to fill in
VERSION = "0.1.0"  # as in gstalk/__init__.py; tests/test_exports.py compares them

ROOT = Path(__file__).resolve().parent
CLI = ["click>=8.1.3", "rich>=13"]
METRICS = ["prometheus-client>=0.20"]


def description() -> str:
    """The README, with links that lead somewhere on any page: to the files of this version, or else none."""

    def link(found: re.Match[str]) -> str:
        is_picture, label, path = found[1] == "!", found[2], found[3]
        if not HOME:
            return "" if is_picture else label
        return f"{found[1]}[{label}]({HOME}/{'raw' if is_picture else 'blob'}/v{VERSION}/{path})"

    return re.sub(r"(!?)\[([^]]*)\]\((?!https?:|#)([^)]*)\)", link, (ROOT / "README.md").read_text(encoding="utf-8"))


def documents() -> list[tuple[str, list[str]]]:
    """The documentation and the examples, for share/doc/gstalk: whoever has the wheel alone has them, too."""
    found = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
    for folder, kinds in (("docs", (".md", ".rst", ".svg")), ("examples", (".py", ".json", ".yml"))):
        found += [path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in kinds]
    made = ROOT / "docs" / "examples"  # by a build of the site; the examples themselves are there
    by_folder: dict[str, list[str]] = {}
    for path in found:
        if made in path.parents:
            continue
        inside = path.relative_to(ROOT)
        by_folder.setdefault(f"share/doc/gstalk/{inside.parent}".removesuffix("/."), []).append(str(inside))
    return list(by_folder.items())


def urls() -> dict[str, str]:
    """What the index shows beside the package."""
    files = f"{HOME}/blob/v{VERSION}"
    return {
        "Source": HOME,
        "Documentation": f"{files}/docs/index.md",
        "Changelog": f"{files}/CHANGELOG.md",
        "Issues": f"{HOME}/issues",
    }


setup(
    name="gstalk",
    version=VERSION,
    description="A beanstalkd client for gevent: many greenlets share few connections to a job queue",
    long_description=description(),
    long_description_content_type="text/markdown",
    author="gstalk maintainers",
    author_email=EMAIL or None,
    url=HOME or None,
    project_urls=urls() if HOME else {},
    license_expression="MIT",
    keywords=["beanstalkd", "beanstalk", "gevent", "queue", "jobs", "worker"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: Implementation :: CPython",
        "Topic :: Software Development :: Libraries :: Python Modules",
        "Topic :: System :: Distributed Computing",
        "Topic :: System :: Networking",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["gstalk", "gstalk.*"]),
    py_modules=["_gstalk_pytest", "_gstalk_script"],
    package_data={"gstalk": ["py.typed"]},
    data_files=documents(),
    install_requires=["gevent>=24.2"],
    extras_require={
        "bench": ["aiostalk>=1.3", "greenstalk>=2", "matplotlib>=3.8", "pystalk>=0.9"],
        "cli": CLI,
        "docs": ["furo>=2024.8", "myst-parser>=4", "opentelemetry-api>=1.30", "sphinx>=8", "sphinx-copybutton>=0.5.2"],
        "metrics": [*CLI, *METRICS],
        "release": ["build>=1.2", "check-wheel-contents>=0.6", "pyroma>=4.2", "twine>=6.1"],
        "otel": ["opentelemetry-api>=1.30"],
        "test": [
            "beanstalkc3>=0.4",
            "cryptography>=42",
            "django>=4.2",
            "flask>=3",
            "freezegun>=1.5",
            "greenstalk>=2",
            "gunicorn>=23",
            "huey>=2.5",
            "hypothesis>=6.100",
            "msgpack>=1",
            "mypy>=1.11",
            "opentelemetry-sdk>=1.30",
            *METRICS,
            "pyright>=1.1.400",
            "pystalk>=0.7",
            "pytest>=8.2",
            "pytest-cov>=5",
            "pytest-xdist>=3.5",
            "python-json-logger>=3.1",
            "ruff>=0.6",
            "sentry-sdk>=2.20",
            "setuptools>=77",
            "structlog>=23.1",
            "types-gevent>=24.2",
        ],
    },
    entry_points={
        "console_scripts": ["gstalk = _gstalk_script:main"],
        "pytest11": ["gstalk = _gstalk_pytest"],
    },
)
