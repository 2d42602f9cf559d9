"""Makes a Python and a Node package called `greeting`, and the indexes in which pip and npm find them.

Usage: packages.py DIRECTORY
"""
import base64
import hashlib
import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(sys.argv[1])


def write(path, content):
    path = ROOT / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


wheel = io.BytesIO()
with zipfile.ZipFile(wheel, "w") as archive:
    about = "greeting-1.0.dist-info"
    archive.writestr("greeting.py", "print('Hello.')\n")
    archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n")
    archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    archive.writestr(f"{about}/RECORD", f"greeting.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")
name = "greeting-1.0-py3-none-any.whl"
write(f"simple/greeting/index", f'<!DOCTYPE html><a href="/files/{name}">{name}</a>')
write(f"files/{name}", wheel.getvalue())

tarball = io.BytesIO()
with tarfile.open(fileobj=tarball, mode="w:gz") as archive:
    for path, text in {
        "package/package.json": '{"name": "greeting", "version": "1.0.0"}',
        "package/index.js": "console.log('Hello.');\n",
    }.items():
        entry = tarfile.TarInfo(path)
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text.encode()))
digest = base64.b64encode(hashlib.sha512(tarball.getvalue()).digest()).decode()
dist = {"tarball": "https://packages.example/npm/-/greeting-1.0.0.tgz", "integrity": f"sha512-{digest}"}
version = {"name": "greeting", "version": "1.0.0", "dist": dist}
index = {"name": "greeting", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
write("npm/greeting", json.dumps(index))
write("npm/-/greeting-1.0.0.tgz", tarball.getvalue())
