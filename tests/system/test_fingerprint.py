import hashlib
import json

from rvllm_jax.system.fingerprint import SHORT, digest, file_digest, json_digest


def test_digests_are_those_that_stand_in_files_already(tmp_path):
    text = "a ü\udc80"
    whole = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    assert digest([text]) == digest(["a ", "ü\udc80".encode("utf-8", "surrogatepass")]) == whole
    assert digest([text], SHORT) == whole[:16]
    value = {"b": "ü", "a": [1, None]}
    assert json_digest(value) == hashlib.sha256(json.dumps(value).encode()).hexdigest()
    ordered = json.dumps(value, sort_keys=True).encode()
    assert json_digest(value, sort_keys=True, length=12) == hashlib.sha256(ordered).hexdigest()[:12]
    (tmp_path / "x").write_bytes(b"\0" * 3_000_000)
    assert file_digest(tmp_path / "x") == hashlib.sha256(b"\0" * 3_000_000).hexdigest()
    assert digest([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
