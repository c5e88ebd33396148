from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="hlb",
    version="0.1.0",
    description="CIFAR-10 to 94 % in the least GPU time, measured honestly",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="the hlb authors",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: Microsoft :: Windows",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: System :: Benchmark",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["hlb", "hlb.*", "kernels", "kernels.*", "bench", "bench.*"]),
    package_data={
        "hlb": ["py.typed"],
        "hlb.cost": ["*.json"],
        "kernels": ["py.typed"],
        "kernels.convolution": ["*.json"],
        "bench.report": ["*.json"],
        "bench.sweeps": ["*.json"],
    },
    python_requires=">=3.10",
    install_requires=["torch>=2.11", "torchvision", "numpy", "pillow", "rich", "scipy", "matplotlib"],
    extras_require={
        # Triton 3.6.0's interpreter, which the kernel tests use, needs numpy below 2.4.
        "test": [
            *("pytest", "pytest-benchmark", "pytest-xdist", "hypothesis", "numpy<2.4", "ruff"),
            *("nbclient", "ipykernel"),  # of the notebook
        ],
        "tensorboard": ["tensorboard"],
    },
    entry_points={"console_scripts": ["hlb = hlb.cli:main"]},
)
