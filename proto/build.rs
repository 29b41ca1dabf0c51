//! Compiles the .proto files without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "inference.proto",
        "hop.proto",
        "control.proto",
        "strategy.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        // Tensors are shared slices of the receive buffer, not copies.
        .bytes(".")
        // Its values are in no log.
        .skip_debug(["lamina.control.v1.SourceSecret"])
        .compile_fds(descriptors)?;
    Ok(())
}
