"""The one thing that `pyproject.toml` cannot say without an experimental setting: the compiled CPU engines."""

from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("protformer/attention/native")

setup(
    ext_modules=[
        Extension(
            f"protformer.attention.native._{engine}",
            sources=[str(NATIVE / f"{engine}.cpp")],
            depends=sorted(str(header) for header in NATIVE.rglob("*.h")),
            language="c++",
            extra_compile_args=["-O3", "-g0", "-std=c++17", "-fvisibility=hidden"],
            # without a C++ compiler everything installs and runs, and the engine says that it is not there
            optional=True,
        )
        for engine in ("favor_amx", "favor_avx512")
    ]
)
