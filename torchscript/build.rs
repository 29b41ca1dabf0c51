//! Builds the shim against the libtorch that torch-sys found.

use std::env;
use std::path::Path;

fn main() {
    let Ok(lib) = env::var("DEP_TCH_LIBTORCH_LIB") else {
        println!("cargo:warning=torch-sys did not say where libtorch is; set LIBTORCH");
        return;
    };
    // `rustc-link-arg` does not reach dependents: they read this key and print
    // the rpath for their own binaries.
    println!("cargo:libtorch_lib={lib}");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    let _ = Path::new(&lib);
}
