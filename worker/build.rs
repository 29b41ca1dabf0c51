//! Lets the binary and the tests find libtorch where it was at build time.

use std::env;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let published = env::var("DEP_LAMINA_TORCHSCRIPT_LIBTORCH_LIB").ok();
    let named = || env::var("LIBTORCH").ok().map(|root| format!("{root}/lib"));
    if let Some(lib) = published.or_else(named) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
