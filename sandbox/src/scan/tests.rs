use super::archive::{Entry, Method, check_entries};
use super::code::{CodeError, check_code};
use super::pickle::{PickleError, check_pickle};
use super::*;
use std::io::{Cursor, Write as _};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

const PICKLE: &[u8] = b"\x80\x02).";

/// A tiny accepted archive, and `more`.
fn archive(more: &[(&str, &[u8])]) -> Vec<u8> {
    let code: &[u8] = b"class M(Module):\n  def forward(self) -> int:\n    return 1\n";
    let base: [(&str, &[u8]); 4] = [
        ("m/data.pkl", PICKLE),
        ("m/code/__torch__.py", code),
        ("m/constants.pkl", PICKLE),
        ("m/version", b"3\n"),
    ];
    zipped(base.iter().chain(more), CompressionMethod::Stored)
}

fn zipped<'a>(
    files: impl IntoIterator<Item = &'a (&'a str, &'a [u8])>,
    method: CompressionMethod,
) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(method);
    for (name, content) in files {
        zip.start_file(*name, options).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn verdict(bytes: &[u8]) -> Result<Scanned, ScanError> {
    scan(Cursor::new(bytes), &ScanLimits::default())
}

#[track_caller]
fn assert_refused(bytes: &[u8], about: &str) {
    let text = verdict(bytes).unwrap_err().to_string();
    assert!(text.contains(about), "{text}");
}

#[test]
fn what_torch_jit_save_writes_is_accepted() {
    let scanned = verdict(&archive(&[])).unwrap();
    assert_eq!(scanned.entries, 4);
    // PyTorch 2.13 keeps the version of some archives there.
    let code: &[u8] = b"def f() -> int:\n  return 1\n";
    let newer: [(&str, &[u8]); 4] = [
        ("m/data.pkl", PICKLE),
        ("m/code/__torch__.py", code),
        ("m/constants.pkl", PICKLE),
        ("m/.data/version", b"3\n"),
    ];
    assert!(verdict(&zipped(&newer, CompressionMethod::Stored)).is_ok());
}

/// `bytes` with the end records of large archives, which torch always writes.
fn as_large(bytes: &[u8]) -> Vec<u8> {
    let (files, end) = bytes.split_at(bytes.len() - 22);
    let number = |at: usize, count: usize| {
        let mut eight = [0; 8];
        eight[..count].copy_from_slice(&end[at..at + count]);
        eight
    };
    let entries = number(10, 2);
    let record = [
        b"PK\x06\x06".as_slice(),
        &44_u64.to_le_bytes(),
        &[0x1e, 3, 0x2d, 0],
        &[0; 8],
        &entries,
        &entries,
        &number(12, 4),
        &number(16, 4),
    ];
    let locator = [
        b"PK\x06\x07\0\0\0\0".as_slice(),
        &(files.len() as u64).to_le_bytes(),
        &[1, 0, 0, 0],
    ];
    [files, &record.concat(), &locator.concat(), end].concat()
}

#[test]
fn names_of_any_length_are_accepted_with_the_records_that_torch_writes() {
    // The directory's entry of the first file is 46 bytes and its name; the
    // records are 76 bytes.
    for length in 1..40 {
        let folder = "m".repeat(length);
        let name = |inner: &str| format!("{folder}/{inner}");
        let names = ["data.pkl", "code/__torch__.py", "constants.pkl", "version"].map(name);
        let contents: [&[u8]; 4] = [PICKLE, b"def f() -> int:\n  return 1\n", PICKLE, b"3\n"];
        let files: Vec<(&str, &[u8])> = names.iter().map(String::as_str).zip(contents).collect();
        let bytes = as_large(&zipped(&files, CompressionMethod::Stored));
        let verdict = verdict(&bytes);
        assert!(verdict.is_ok(), "{length}: {verdict:?}");
    }
}

#[test]
fn a_folder_may_be_called_as_its_author_likes() {
    for folder in ["v:2", "a:b", "é", "my model"] {
        let name = |inner: &str| format!("{folder}/{inner}");
        let names = ["data.pkl", "code/__torch__.py", "constants.pkl", "version"].map(name);
        let contents: [&[u8]; 4] = [PICKLE, b"def f() -> int:\n  return 1\n", PICKLE, b"3\n"];
        let files: Vec<(&str, &[u8])> = names.iter().map(String::as_str).zip(contents).collect();
        let verdict = verdict(&zipped(&files, CompressionMethod::Stored));
        assert!(verdict.is_ok(), "{folder}: {verdict:?}");
    }
}

#[test]
fn extra_files_are_their_authors_and_no_code() {
    let script: &[u8] = b"import os\nos.system('true')\nops.c10d.send('";
    let pickle: &[u8] = b"\x80\x04cposix\nsystem\n.";
    let extra = [("m/extra/notes.py", script), ("m/extra/labels.pkl", pickle)];
    assert!(verdict(&archive(&extra)).is_ok());
    // libtorch reads code from everywhere else.
    for name in ["m/code/extra/notes.py", "m/EXTRA/notes.py", "m/extras.py"] {
        assert!(verdict(&archive(&[(name, script)])).is_err(), "{name}");
    }
}

#[test]
fn archives_of_another_kind_say_what_to_do() {
    let package: [(&str, &[u8]); 3] = [
        ("p/.data/extern_modules", b"torch\n"),
        ("p/.data/version", b"6\n"),
        ("p/model/model.pkl", PICKLE),
    ];
    let package = zipped(&package, CompressionMethod::Stored);
    assert_refused(&package, "PackageImporter");
    let old: [(&str, &[u8]); 3] = [
        ("m/version", b"1\n"),
        ("m/code/m.py", b"op_version_set = 0\n"),
        ("m/model.json", b"{}"),
    ];
    let old = zipped(&old, CompressionMethod::Stored);
    assert_refused(&old, "written by PyTorch 1.1 or older");
}

#[test]
fn marks_of_a_profiler_are_taken() {
    let code =
        b"class M(Module):\n  r : Optional[__torch__.torch.classes.profiler._RecordFunction]\n\
        def forward(self) -> int:\n    _0 = ops.profiler._record_function_enter_new(\"a\")\n\
        ops.profiler._record_function_exit(_0)\n    return 1\n";
    assert_eq!(check_code(code), Ok(()));
    for bad in [
        &b"ops.profiler.start()"[..],
        b"x : __torch__.torch.classes.profiler.Other",
    ] {
        assert!(check_code(bad).is_err());
    }
}

#[test]
fn what_is_no_archive_is_named() {
    assert_refused(b"", "empty");
    assert_refused(b"some text that is long enough", "does not begin like one");
    assert_refused(b"\x80\x02cposix\nsystem\n.", "bare pickle");
    assert_refused(b"\x08\x0a\x12\x07pytorch", "ONNX");
    assert_refused(b"\x02\0\0\0\0\0\0\0{}", "load_state_dict");
    let good = archive(&[]);
    for length in 4..good.len() {
        assert_refused(&good[..length], "no whole zip archive");
    }
}

#[test]
fn two_readers_never_see_two_archives() {
    let good = archive(&[]);
    let in_front = [b"PK\x03\x04".as_slice(), &good].concat();
    assert_refused(&in_front, "zip archive");
    let behind = [good.as_slice(), &good].concat();
    assert_refused(&behind, "ambiguous");
    let comment = [good.as_slice(), b"x"].concat();
    assert_refused(&comment, "its end is missing");
    let mut two_ends = as_large(&good);
    assert!(verdict(&two_ends).is_ok());
    let begin_of_directory = two_ends.len() - 22 + 16;
    two_ends[begin_of_directory] ^= 1;
    assert_refused(&two_ends, "do not agree");
}

#[test]
fn names_stay_inside_and_are_told_apart() {
    for (name, about) in [
        ("m/../../etc/passwd", "leaves the archive"),
        ("/etc/passwd", "absolute"),
        ("c:/x", "outside the archive's one folder"),
        ("m/a\\b", "backslash"),
        ("m/a\nb", "control"),
        ("n/stray", "outside"),
        ("m/DATA.pkl", "twice"),
    ] {
        assert_refused(&archive(&[(name, b"x")]), about);
    }
}

#[test]
fn archives_of_something_else_are_named() {
    let plain: [(&str, &[u8]); 1] = [("m/readme", b"hello")];
    assert_refused(
        &zipped(&plain, CompressionMethod::Stored),
        "without data.pkl",
    );
    let tensors: [(&str, &[u8]); 3] = [
        ("m/data.pkl", PICKLE),
        ("m/version", b"3"),
        ("m/data/0", b"1234"),
    ];
    assert_refused(&zipped(&tensors, CompressionMethod::Stored), "state_dict");
    let export = "python -m lamina export";
    assert_refused(&archive(&[("m/archive_format", b"pt2")]), export);
    let older: [(&str, &[u8]); 2] = [
        ("version", b"1"),
        ("serialized_exported_program.json", b"{}"),
    ];
    assert_refused(&zipped(&older, CompressionMethod::Stored), export);
}

#[test]
fn too_many_files_are_refused_before_their_names_are_read() {
    let mut bytes = archive(&[]);
    let end = bytes.len() - 22;
    bytes[end + 8..end + 12].copy_from_slice(&[0xff, 0xfe, 0xff, 0xfe]);
    assert_refused(&bytes, "no room for its files");
    let limits = ScanLimits {
        entries: 3,
        ..ScanLimits::default()
    };
    let error = scan(Cursor::new(archive(&[])), &limits).unwrap_err();
    assert!(matches!(
        error,
        ScanError::TooManyEntries { entries: 4, .. }
    ));
    // A record for large archives that claims more than the small one.
    let large = [
        b"PK\x06\x06".as_slice(),
        &[0; 28],
        &u64::MAX.to_le_bytes(),
        &[0; 16],
    ]
    .concat();
    let small = bytes.split_off(end);
    let locator = [
        b"PK\x06\x07\0\0\0\0".as_slice(),
        &(end as u64).to_le_bytes(),
        &[1, 0, 0, 0],
    ];
    let bytes = [bytes, large, locator.concat(), small].concat();
    assert_refused(&bytes, "more than 100000");
}

#[test]
fn a_bomb_is_refused_before_it_is_inflated() {
    let zeros = vec![0; 70 << 20];
    let bomb: [(&str, &[u8]); 1] = [("m/data/0", &zeros)];
    let bomb = zipped(&bomb, CompressionMethod::Deflated);
    assert!(bomb.len() < 100_000);
    assert_refused(&bomb, "zip bomb");
    let lying = Entry {
        name: "m/a".into(),
        inflated: u64::MAX,
        encrypted: false,
        method: Method::Stored,
    };
    let error = check_entries(&[lying.clone(), lying], 100, &ScanLimits::default());
    assert!(matches!(error, Err(ScanError::Duplicate { .. })));
}

#[test]
fn entries_that_libtorch_does_not_read_are_refused() {
    let entry = |encrypted, method| Entry {
        name: "m/a".into(),
        inflated: 1,
        encrypted,
        method,
    };
    for (entry, about) in [
        (entry(true, Method::Stored), "encrypted"),
        (entry(false, Method::Other), "compressed in a way"),
    ] {
        let error = check_entries(&[entry], 100, &ScanLimits::default()).unwrap_err();
        assert!(error.to_string().contains(about), "{error}");
    }
}

#[test]
fn a_damaged_weight_is_noticed() {
    let mut bytes = archive(&[("m/data/0", b"the weights")]);
    let at = bytes.windows(11).position(|w| w == b"the weights").unwrap();
    bytes[at] ^= 1;
    assert_refused(&bytes, "\"m/data/0\" is damaged");
}

#[test]
fn changed_bytes_never_panic() {
    let good = archive(&[("m/data/0", b"weights")]);
    for at in 0..good.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[at] ^= flip;
            let _ = verdict(&bytes);
        }
    }
}

fn pickle(body: &[u8]) -> Result<(), PickleError> {
    check_pickle(&[b"\x80\x02", body, b"."].concat())
}

#[test]
fn pickles_name_only_types_of_torchscript() {
    for good in [
        "c__torch__.torch.nn.modules.linear\nLinear\n",
        "c__torch__\nM\n",
        "ctorch._utils\n_rebuild_tensor_v2\n",
        "ctorch\nFloatStorage\n",
        "ccollections\nOrderedDict\n",
        "c__torch__.torch.classes.quantized\nConv2dPackedParamsBase\n",
    ] {
        assert_eq!(pickle(good.as_bytes()), Ok(()), "{good}");
    }
    for bad in [
        "cos\nsystem\n",
        "cposix\nsystem\n",
        "cbuiltins\neval\n",
        "c__builtin__\ngetattr\n",
        "ctorch._utils\n_rebuild_parameter\n",
        "ctorch\nstorage.load\n",
        "ctorch.hub\nload\n",
        "c__torch__x\nM\n",
        "c__torch__.torch.classes.c10d\nTCPStore\n",
        "c__torch__.a/../b\nM\n",
    ] {
        let error = pickle(bad.as_bytes());
        assert!(matches!(error, Err(PickleError::Global { .. })), "{bad}");
    }
}

#[test]
fn pickles_hold_only_what_libtorch_reads() {
    // STACK_GLOBAL, EXT1, INST, INT, EVAL by text
    for opcode in [0x93, 0x82, b'i', b'I', b'V', 0x8c] {
        let error = pickle(&[opcode, 1]);
        assert_eq!(error, Err(PickleError::Opcode { opcode, at: 2 }));
    }
    assert_eq!(pickle(b"X\xff\xff\xff\xff"), Err(PickleError::Truncated));
    assert_eq!(pickle(b"cno newline"), Err(PickleError::Truncated));
    let memo = PickleError::Memo { place: 0x00ff_ffff };
    assert_eq!(pickle(b"r\xff\xff\xff\x00"), Err(memo));
    assert_eq!(check_pickle(b"\x80\x04N."), Err(PickleError::Protocol));
    assert_eq!(check_pickle(b"\x80\x02N.N"), Err(PickleError::Trailing));
}

#[test]
fn code_that_reaches_out_is_refused() {
    for bad in [
        "torch.save(x, \"f\")",
        "torch . save(x)",
        "torch.\\\n save(x)",
        "y = torch.from_file(\"/etc/passwd\", False, 8)",
        "ops.aten.save(x, \"f\")",
        "ops.prim.rpc_sync(x)",
        "ops.prim.PythonOp(x)",
        "x.save(\"f\")",
        "(torch).save(x)",
        "t = torch\n",
        "o = ops\n",
        "o = ops.aten\n",
        "ops.c10d.send(x)",
        "ops.inductor.load(x)",
        "ops.debugprims.load_tensor(x)",
        "getattr(x, \"save\")",
        "getattr(x, \"sa\\x76e\")",
        "getattr(torch, \"save\")",
        "g = getattr\n",
        "x = __torch__.torch.classes.c10d.TCPStore.__new__()",
        "x = 1 # it's a comment: torch.save(x)'",
        "# \"\"\"\ntorch.save(x)\n# \"\"\"",
        "x = \"#\"; torch.save(x)",
        "x = \"a\\\"\"; torch.save(x)",
        "x = \"\"\"a\n\"\"\"; torch.save(x)",
        "x = \"\"; torch.save(x)",
        "x = \"no end\n",
        "x = \"no end\\",
    ] {
        assert!(check_code(bad.as_bytes()).is_err(), "{bad}");
    }
    assert_eq!(check_code(b"\xff"), Err(CodeError::NotText));
}

#[test]
fn code_of_ordinary_models_is_accepted() {
    for good in [
        "x0 = torch.relu(x)\ny = torch.conv2d(x, self.weight)",
        "_0 = getattr(self.features, \"0\")",
        "_0 = uninitialized(Tensor)\nx = ops.prim.NumToTensor(1)",
        "y = ops.quantized.linear(x, self._packed_params, 1., 0)",
        "_p : __torch__.torch.classes.quantized.LinearPackedParamsBase",
        "layer = __torch__.torch.nn.modules.linear.Linear",
        "ops.prim.RaiseException(\"use torch.save() or x.save\")",
        "saved = self.saver\nx = f(ops=1)",
    ] {
        assert_eq!(check_code(good.as_bytes()), Ok(()), "{good}");
    }
}
