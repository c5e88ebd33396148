from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="hlb",
    version="0.1.0",
    description="CIFAR-10 to 94 % in the least GPU time, measured honestly",
    long_description=Path(__file__).with_name("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["hlb", "hlb.*", "kernels", "kernels.*"]),
    package_data={"hlb.cost": ["*.json"], "kernels.convolution": ["*.json"]},
    python_requires=">=3.10",
    install_requires=["torch>=2.11", "torchvision", "numpy", "rich", "scipy"],
    extras_require={
        # Triton 3.6.0's interpreter, which the kernel tests use, needs numpy below 2.4.
        "test": [
            *("pytest", "pytest-benchmark", "pytest-xdist", "hypothesis", "numpy<2.4", "ruff"),
            *("matplotlib", "nbclient", "ipykernel"),  # of the plots, and of the notebook
        ],
        "plot": ["matplotlib"],
    },
    entry_points={"console_scripts": ["hlb = hlb.cli:main"]},
)
