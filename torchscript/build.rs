//! Builds the shim against the libtorch that torch-sys found.

use std::env;
use std::path::Path;

const SOURCES: [&str; 14] = [
    "shim/batch.cpp",
    "shim/bind.cpp",
    "shim/clean.cpp",
    "shim/codec.cpp",
    "shim/common.cpp",
    "shim/dependence.cpp",
    "shim/exits.cpp",
    "shim/graph.cpp",
    "shim/optimize.cpp",
    "shim/proportion.cpp",
    "shim/retrace.cpp",
    "shim/sharing.cpp",
    "shim/source.cpp",
    "shim/watch.cpp",
];

fn main() {
    let Ok(lib) = env::var("DEP_TCH_LIBTORCH_LIB") else {
        println!("cargo:warning=torch-sys did not say where libtorch is: set LIBTORCH");
        std::process::exit(1);
    };
    // `rustc-link-arg` does not reach dependents: they read this key
    // (DEP_LAMINA_TORCHSCRIPT_LIBTORCH_LIB) and print the rpath themselves.
    println!("cargo:libtorch_lib={lib}");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    println!("cargo:rerun-if-changed=shim");

    let include = Path::new(&lib).join("../include");
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        // libtorch is built with it, and its headers differ without.
        .define("NDEBUG", None)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .flag("-isystem")
        .flag(include.join("torch/csrc/api/include").display().to_string())
        .flag("-isystem")
        .flag(include.display().to_string())
        .include("shim")
        .files(SOURCES);
    if env::var_os("CARGO_FEATURE_BASELINE").is_some() {
        build.file("shim/whole.cpp");
    }
    build.compile("lamina_torchscript_shim");
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
}
