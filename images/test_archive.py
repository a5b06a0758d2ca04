"""`make test` runs these: python3 -m unittest discover --start-directory images"""

import io
import json
import struct
import sys
import tarfile
import tempfile
import unittest
from pathlib import Path

import archive

DOCKERFILE = (Path(__file__).parent.parent / "Dockerfile").read_text()


def static_binary(machine=0x3E):
    """The least that is recognised as a static program: an ELF header and one program header, of a loaded segment."""
    header = struct.pack("<4sBBBBQHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, 0, 2, machine, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 0, 0, 0)


class Images(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.binaries = Path(folder.name)
        for name in ("wspool-operator", "wspool-sidecar"):
            self.put(name, static_binary())

    def put(self, name, content):
        (self.binaries / name).write_bytes(content)

    def build(self, stage="sidecar", dockerfile=DOCKERFILE):
        layer, config = archive.image(archive.stage(dockerfile, stage), self.binaries)
        return archive.archive(f"wspool.dev/wspool-{stage}:0.1.0", layer, config)

    def refused(self, **what):
        with self.assertRaises(archive.Refused) as caught:
            self.build(**what)
        return str(caught.exception)

    def test_an_image_is_one_static_program_run_by_a_user_who_is_not_root(self):
        for stage in ("operator", "sidecar"):
            layer, config = archive.image(archive.stage(DOCKERFILE, stage), self.binaries)
            with tarfile.open(fileobj=io.BytesIO(layer)) as files:
                self.assertEqual([(f.name, f.mode, f.uid) for f in files], [(f"wspool-{stage}", 0o755, 0)])
            self.assertEqual(config["config"]["Entrypoint"], [f"/wspool-{stage}"])
            user, group = config["config"]["User"].split(":")
            self.assertGreater(int(user), 0)
            self.assertGreater(int(group), 0)

    def test_the_same_input_gives_the_same_bytes_and_another_binary_another_digest(self):
        first, second = self.build(), self.build()
        self.assertEqual(first, second)
        self.put("wspool-sidecar", static_binary() + b"another")
        self.assertNotEqual(self.build()[1], first[1])

    def test_every_reference_in_an_archive_leads_to_content_of_that_digest(self):
        content, its_digest = self.build()
        with tarfile.open(fileobj=io.BytesIO(content)) as files:
            read = lambda name: files.extractfile(name).read()
            blob = lambda part: read("blobs/" + part["digest"].replace(":", "/"))
            (entry,) = json.loads(read("index.json"))["manifests"]
            self.assertEqual(entry["digest"], its_digest)
            manifest = json.loads(blob(entry))
            config, (layer,) = json.loads(blob(manifest["config"])), manifest["layers"]
            for part in (entry, manifest["config"], layer):
                self.assertEqual((archive.digest(blob(part)), len(blob(part))), (part["digest"], part["size"]))
            self.assertEqual(config["rootfs"]["diff_ids"], [layer["digest"]])
            (docker,) = json.loads(read("manifest.json"))
            self.assertEqual([read(docker["Config"]), read(docker["Layers"][0])], [blob(manifest["config"]), blob(layer)])

    def test_the_architecture_is_that_of_the_binary(self):
        self.put("wspool-sidecar", static_binary(machine=0xB7))
        _, config = archive.image(archive.stage(DOCKERFILE, "sidecar"), self.binaries)
        self.assertEqual(config["architecture"], "arm64")

    def test_a_binary_that_needs_a_loader_is_refused(self):
        self.put("wspool-sidecar", Path(sys.executable).read_bytes())
        self.assertIn("wspool-sidecar is not static: build it with images/compile", self.refused())

    def test_a_file_that_is_no_program_is_refused(self):
        self.put("wspool-sidecar", b"#!/bin/sh\n")
        self.assertIn("wspool-sidecar is not a 64-bit little-endian ELF binary", self.refused())

    def test_an_instruction_that_would_be_ignored_is_refused(self):
        refusal = self.refused(dockerfile=DOCKERFILE + "ENV MODE=debug\n")
        self.assertIn("ENV MODE=debug: only COPY --from=build /out/..., LABEL, USER and ENTRYPOINT", refusal)

    def test_a_stage_that_is_not_there_is_refused(self):
        self.assertIn('no stage "FROM scratch AS router"', self.refused(stage="router"))


if __name__ == "__main__":
    unittest.main()
