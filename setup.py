"""The one thing that `pyproject.toml` cannot say without an experimental setting: the compiled CPU engine."""

from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("protformer/attention/native")

setup(
    ext_modules=[
        Extension(
            "protformer.attention.native._favor_amx",
            sources=[str(NATIVE / "favor_amx.cpp")],
            depends=sorted(str(header) for header in NATIVE.glob("*.h")),
            language="c++",
            extra_compile_args=["-O3", "-g0", "-std=c++17", "-fvisibility=hidden"],
            # without a C++ compiler everything installs and runs, and the engine says that it is not there
            optional=True,
        )
    ]
)
