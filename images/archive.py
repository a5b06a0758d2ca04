#!/usr/bin/env python3
"""Builds one image of the Dockerfile, without Docker: a stage that is FROM scratch and copies static binaries.

    images/archive.py DOCKERFILE STAGE BINARIES NAME:TAG ARCHIVE

The archive is an OCI image layout and, for older tools, what `docker save` writes. Nothing in it depends on the time
or on who builds it, and its layer is not compressed (compressors differ): same Dockerfile and binaries, same digest.
"""

import hashlib
import io
import json
import posixpath
import re
import shlex
import struct
import sys
import tarfile
from pathlib import Path

ARCHITECTURES = {0x3E: "amd64", 0xB7: "arm64"}  # by the ELF header's e_machine
PROGRAM_HEADER_INTERPRETER = 3


class Refused(Exception):
    """What is wrong with the input, and what would be right."""


def stage(dockerfile, name):
    """The instructions of one stage: a list of (instruction, arguments)."""
    text = re.sub(r"\\\n", " ", dockerfile)
    found, inside = [], False
    for line in text.splitlines():
        instruction, _, arguments = line.strip().partition(" ")
        if not instruction or instruction.startswith("#"):
            continue
        if instruction == "FROM":
            inside = arguments == f"scratch AS {name}"
        elif inside:
            found.append((instruction, arguments))
    if not found:
        raise Refused(f'the Dockerfile has no stage "FROM scratch AS {name}"')
    return found


def architecture(path, binary):
    """What machine a static binary is for. A dynamic one would not start: the image has no loader and no libraries."""
    if binary[:6] != b"\x7fELF\x02\x01":
        raise Refused(f"{path} is not a 64-bit little-endian ELF binary")
    (machine,) = struct.unpack_from("<H", binary, 18)
    (headers,) = struct.unpack_from("<Q", binary, 32)
    size, count = struct.unpack_from("<HH", binary, 54)
    kinds = [struct.unpack_from("<I", binary, headers + size * i)[0] for i in range(count)]
    if PROGRAM_HEADER_INTERPRETER in kinds:
        raise Refused(f"{path} is not static: build it with images/compile")
    if machine not in ARCHITECTURES:
        raise Refused(f"{path} is for the machine {machine:#x}; images are made for {', '.join(ARCHITECTURES.values())}")
    return ARCHITECTURES[machine]


def tar(files):
    """A tar of {path: (content, mode)}, with the folders they are in."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as writer:
        folders = {posixpath.join(*path.split("/")[:depth]) for path in files for depth in range(1, path.count("/") + 1)}
        for path in sorted(folders | files.keys()):
            content, mode = files.get(path, (b"", 0o755))
            entry = tarfile.TarInfo(path)
            entry.mode = mode
            if path in folders:
                entry.type = tarfile.DIRTYPE
            entry.size = len(content)
            writer.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def encode(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def image(instructions, binaries):
    """A stage's layer and its configuration."""
    files, machines, config = {}, set(), {}
    for instruction, arguments in instructions:
        match instruction, shlex.split(arguments) if instruction in ("COPY", "LABEL") else arguments:
            case "COPY", ["--from=build", source, target] if source.startswith("/out/"):
                path = Path(binaries, source.removeprefix("/out/"))
                binary = path.read_bytes()
                machines.add(architecture(path, binary))
                files[target.lstrip("/")] = (binary, 0o755)
            case "LABEL", pairs:
                config.setdefault("Labels", {}).update(pair.split("=", 1) for pair in pairs)
            case "USER", user:
                config["User"] = user
            case "ENTRYPOINT", command:
                config["Entrypoint"] = json.loads(command)
            case _:
                raise Refused(f"{instruction} {arguments}: only COPY --from=build /out/..., LABEL, USER and ENTRYPOINT "
                              "[...] are known here")
    if len(machines) != 1:
        raise Refused(f"the stage copies binaries for {sorted(machines) or 'no machine'}; it needs one")
    layer = tar(files)
    return layer, {
        "architecture": machines.pop(),
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
    }


def archive(name, layer, config):
    """The archive, and the digest under which a registry will know the image."""
    blobs = {}

    def blob(media_type, content):
        blobs["blobs/" + digest(content).replace(":", "/")] = (content, 0o644)
        return {"mediaType": media_type, "digest": digest(content), "size": len(content)}

    config = blob("application/vnd.oci.image.config.v1+json", encode(config))
    layer = blob("application/vnd.oci.image.layer.v1.tar", layer)
    media_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = {"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer]}
    entry = blob(media_type, encode(manifest))
    entry["annotations"] = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
    }
    path = lambda part: "blobs/" + part["digest"].replace(":", "/")
    documents = {
        "oci-layout": {"imageLayoutVersion": "1.0.0"},
        "index.json": {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]},
        "manifest.json": [{"Config": path(config), "RepoTags": [name], "Layers": [path(layer)]}],
    }
    return tar(blobs | {file: (encode(value), 0o644) for file, value in documents.items()}), entry["digest"]


def main(dockerfile, name_of_stage, binaries, name, target):
    if not re.fullmatch(r"[a-z0-9][a-z0-9.:/_-]*:[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise Refused(f"{name} is not NAME:TAG, for example wspool.dev/wspool-operator:0.1.0")
    content, its_digest = archive(name, *image(stage(Path(dockerfile).read_text(), name_of_stage), binaries))
    Path(target).write_bytes(content)
    print(f"{name} {its_digest} {target}")


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (Refused, OSError) as error:
        sys.exit(f"images/archive.py: {error}")
