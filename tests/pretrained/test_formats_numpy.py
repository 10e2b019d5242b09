"""NumPy archives: names, byte orders, other entries, and refusals before any memory is used."""

from __future__ import annotations

import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from format_samples import npy, write_npz

from finetune_jax.errors import UserError
from finetune_jax.pretrained import open_weights


def header(text: str) -> bytes:
    """A ``.npy`` header with the given text."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n"


def described(descr: str, shape: str, fortran: bool = False) -> bytes:
    return header(f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}")


def archive(path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as out:
        for name, content in members.items():
            out.writestr(name, content)
    return path


def test_bfloat16_as_big_vision_saves_it_is_repaired(tmp_path):
    values = np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3)
    np.savez(tmp_path / "a.npz", **{"params/w": values})
    with open_weights(tmp_path / "a.npz") as weights:
        assert weights.spec("params/w") == ((2, 3), np.dtype(ml_dtypes.bfloat16))
        np.testing.assert_array_equal(weights.read("params/w"), values)


def test_byte_order_and_fortran_order_are_turned(tmp_path):
    arrays = {
        "big": np.arange(6, dtype=">f4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=">i8").reshape(2, 3)),
    }
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    with open_weights(tmp_path / "a.npz") as weights:
        for name, array in arrays.items():
            found = weights.read(name)
            assert found.dtype.isnative and found.flags.c_contiguous
            np.testing.assert_array_equal(found, array)


def test_an_optimizer_and_texts_stand_beside_and_old_targets_do_not(tmp_path):
    one = np.ones(2, np.float32)
    names = ["params/w", "opt/state/m", "optimizer/m", "states/0", "opt/target/w", "opt_state/0/m"]
    content = {f"{name}.npy": npy(one) for name in names}
    content |= {"names.npy": npy(np.array(["a", "b"])), "README.md": b"read me"}
    with open_weights(archive(tmp_path / "a.zip", content)) as weights:
        assert weights.names() == ("params/w", "opt/target/w")
        assert set(weights.other_entries) == {*names, "names", "README.md"} - set(weights.names())


def test_opening_reads_no_values(tmp_path):
    path = write_npz(tmp_path / "a.npz", {"w": np.ones(10**5, np.float32)})
    content = bytearray(path.read_bytes())
    content[2000] ^= 1  # in the values: the checksum of the member no longer holds
    path.write_bytes(content)
    with open_weights(path) as weights:
        assert weights.spec("w") == ((10**5,), np.dtype(np.float32))
        with pytest.raises(UserError, match="'w.npy' is damaged.*CRC"):
            weights.read("w")


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (described("'|O'", "(1,)") + b"\x80\x02N.", "array of Python objects"),
        (described("'<f4'", "(1000000000000,)"), "declares float32.*4000000000000 bytes, and 0"),
        (described("'<f4'", "(0, 4611686018427387904, 8)"), "beyond all memory"),
        (described("'<f4'", "(2,)") + b"1234", "8 bytes, and 4 bytes follow"),
        (described("'<f4'", "(1,)") + b"12345678", "4 bytes, and 8 bytes follow"),
        (described("'<f4'", "(-1,)"), "no count"),
        (described("'<f4'", "(True,)") + b"1234", "no count"),
        (described("[('a', '<f4')]", "(1,)") + b"1234", "expected a number"),
        (described("'|V3'", "(1,)") + b"123", "expected a number"),
        (described("'<M8[s]'", "(1,)") + b"12345678", "expected a number"),
        (header("__import__('os').system('true')"), "damaged .npy header"),
        (header("[" * 9000), "damaged .npy header"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{", "damaged .npy header"),
        (b"\x93NUMPY\x03\x00" + b"\x00" * 60, "version"),
        (b"", "damaged .npy header"),
    ],
)
def test_a_hostile_array_is_refused_at_opening(tmp_path, content, message, folder):
    if folder:
        (tmp_path / "w.npy").write_bytes(content)
        path = tmp_path
    else:
        path = archive(tmp_path / "a.npz", {"w.npy": content})
    with pytest.raises(UserError, match=f"{tmp_path}.*tensor 'w'.*{message}"):
        open_weights(path)


@pytest.mark.parametrize("name", ["../w.npy", "/w.npy", "a/../../w.npy", "..\\w.npy"])
def test_a_member_that_names_a_place_outside_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="outside of the archive"):
        open_weights(archive(tmp_path / "a.npz", {name: npy(np.ones(1))}))


def test_zip_bombs_are_refused_before_they_are_inflated(tmp_path):
    bomb = described("'<f4'", "(12500000,)") + bytes(50_000_000)
    path = archive(tmp_path / "a.npz", {"w.npy": bomb}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**6
    with pytest.raises(UserError, match="zip bomb"):
        open_weights(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path, method):
    with pytest.raises(UserError, match="expected stored or deflated"):
        open_weights(archive(tmp_path / "a.npz", {"w.npy": npy(np.ones(9))}, method))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_given_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as out:
        for value in (1, 2):
            out.writestr("w.npy", npy(np.full(2, value)))
    with pytest.raises(UserError, match="'w.npy' is there twice"):
        open_weights(tmp_path / "a.npz")


def test_members_that_share_their_bytes_are_refused(tmp_path):
    path = archive(
        tmp_path / "a.npz", {f"w{i}.npy": npy(np.zeros(2000, np.float32)) for i in range(2)}
    )
    content = path.read_bytes()
    # Point the second entry of the directory at the first member, a hundred times.
    begin = content.index(b"PK\x01\x02")
    entry = content[begin : begin + 46 + len("w0.npy")]
    names = [f"w{i}.npy".encode()[:6] for i in range(10)]
    entries = b"".join(entry[:46] + name for name in names)
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 10, 10, len(entries), begin, 0)
    path.write_bytes(content[:begin] + entries + end)
    with pytest.raises(UserError, match="larger than the file"):
        open_weights(path)


def test_a_folder_of_arrays_opens_and_links_out_of_it_do_not(tmp_path):
    folder = tmp_path / "arrays"
    folder.mkdir()
    np.save(folder / "conv1_kernel.npy", np.arange(4, dtype=np.float32))
    (folder / "README").write_text("x")
    with open_weights(folder) as weights:
        assert weights.names() == ("conv1_kernel",)
        assert weights.other_entries == ("README",)
        np.testing.assert_array_equal(weights.read("conv1_kernel"), np.arange(4))
    np.save(tmp_path / "secret.npy", np.ones(1))
    (folder / "link.npy").symlink_to(tmp_path / "secret.npy")
    with pytest.raises(UserError, match="a link out of the folder"):
        open_weights(folder)
