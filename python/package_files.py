"""Writes what a package needs beside the program, into the root of the repository: THIRD-PARTY.txt, the licences of all that
is built in or lies beside it in a wheel, and PACKAGE.md, the README with links that lead somewhere from anywhere.

    python python/package_files.py [FOLDER OF python/openblas.sh]
"""

import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

#: Libraries of the system that a wheel brings along where OpenBLAS is not built in, by their packages on Debian and Ubuntu.
LIBRARIES = ["libopenblas0-pthread", "libopenblas0", "libgfortran5", "libquadmath0"]
NAMES = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE")


def crates():
    """Every crate that is built into the program, with the texts of its licences."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"]
    data = json.loads(subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout)
    packages = {package["id"]: package for package in data["packages"]}
    nodes = {node["id"]: node for node in data["resolve"]["nodes"]}
    root = next(id for id, package in packages.items() if package["name"] == "onnx-kprune")
    found, open_ = {}, [root]
    while open_:
        id = open_.pop()
        if id in found:
            continue
        found[id] = packages[id]
        kinds = lambda dep: any(kind["kind"] is None for kind in dep["dep_kinds"])
        open_ += [dep["pkg"] for dep in nodes[id]["deps"] if kinds(dep)]
    own = set(data["workspace_members"])
    for id, package in sorted(found.items(), key=lambda item: (item[1]["name"], item[1]["version"])):
        if id in own:
            continue
        folder = pathlib.Path(package["manifest_path"]).parent
        files = sorted(path for path in folder.iterdir() if path.is_file() and path.name.upper().startswith(NAMES))
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in files]
        yield f"{package['name']} {package['version']} ({package['license']})", texts


def libraries(openblas):
    if openblas:
        yield "OpenBLAS (BSD-3-Clause)", [(pathlib.Path(openblas) / "LICENSE").read_text(encoding="utf-8")]
        return
    for name in LIBRARIES:
        path = pathlib.Path("/usr/share/doc") / name / "copyright"
        if path.is_file():
            yield f"{name}, as wheels for Linux bring it", [path.read_text(encoding="utf-8", errors="replace")]


def package_readme():
    """The README with absolute links, to the repository that Cargo.toml names."""
    repository = re.search(r'^repository = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    raw = repository.replace("https://github.com/", "https://raw.githubusercontent.com/")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"(!\[[^]]*\]\()(?!https?:|#)", rf"\1{raw}/main/", text)
    return re.sub(r"((?<!!)\[[^]]*\]\()(?!https?:|#)", rf"\1{repository}/blob/main/", text)


def third_party(openblas):
    parts, seen = ["What is built into onnx-kprune or comes with it, and under which licences.\n"], {}
    for title, texts in [*crates(), *libraries(openblas)]:
        parts.append(f"\n{'=' * 100}\n{title}\n")
        for text in texts:
            # Most crates have the same few texts.
            first = seen.setdefault(text.strip(), title)
            parts.append(text if first == title else f"(the text of {first})\n")
    return "\n".join(parts)


if __name__ == "__main__":
    (ROOT / "THIRD-PARTY.txt").write_text(third_party(next(iter(sys.argv[1:]), None)), encoding="utf-8")
    (ROOT / "PACKAGE.md").write_text(package_readme(), encoding="utf-8")
