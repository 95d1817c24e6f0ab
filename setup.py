"""The package's metadata. pyproject.toml names the build system and holds the tools' settings, nothing else."""

from pathlib import Path

from setuptools import find_packages, setup

CLI = ["click>=8.1.3", "rich>=13"]
METRICS = ["prometheus-client>=0.20"]

readme = Path(__file__).with_name("README.md")

setup(
    name="gstalk",
    version="0.1.0",  # as in gstalk/__init__.py; tests/test_exports.py compares them
    description="A beanstalkd client for gevent: many greenlets share few connections to a job queue",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author="gstalk maintainers",
    license="MIT",
    keywords=["beanstalkd", "beanstalk", "gevent", "queue", "jobs", "worker"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["gstalk", "gstalk.*"]),
    py_modules=["_gstalk_pytest"],
    package_data={"gstalk": ["py.typed"]},
    install_requires=["gevent>=24.2"],
    extras_require={
        "bench": ["aiostalk>=1.3", "greenstalk>=2", "matplotlib>=3.8", "pystalk>=0.9"],
        "cli": CLI,
        "docs": ["furo>=2024.8", "myst-parser>=4", "opentelemetry-api>=1.30", "sphinx>=8"],
        "metrics": [*CLI, *METRICS],
        "otel": ["opentelemetry-api>=1.30"],
        "test": [
            "beanstalkc3>=0.4",
            "django>=4.2",
            "flask>=3",
            "freezegun>=1.5",
            "greenstalk>=2",
            "gunicorn>=23",
            "hypothesis>=6.100",
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
            "setuptools>=70.1",
            "structlog>=23.1",
            "types-gevent>=24.2",
        ],
    },
    entry_points={
        "console_scripts": ["gstalk = gstalk.cli:main"],
        "pytest11": ["gstalk = _gstalk_pytest"],
    },
)
