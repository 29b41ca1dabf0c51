#!/bin/sh
# libtorch.sh LIB FOLDER
# Puts the part of PyTorch's LIB folder that the agent needs into FOLDER, stripped.
#
# PyTorch's libtorch_cpu names libcudart and libcupti, which only its profiler calls.
# They are NVIDIA's and are not wanted here: libraries of the same names stand in, whose
# functions return cudaErrorUnknown and CUPTI_ERROR_UNKNOWN, which are both 999. They must
# lie beside libtorch_cpu, where its run path looks.
set -eu
from=$1
to=$2
mkdir -p "$to"
for name in libtorch_cpu.so libc10.so libgomp.so.1; do
    strip --strip-unneeded -o "$to/$name" "$from/$name"
done
# On arm64 the wheel brings its own BLAS, and more, beside PyTorch's libraries.
for extra in "$from"/libarm_compute*.so* "$from"/libopenblas*.so* "$from"/libgfortran*.so*; do
    if [ -e "$extra" ]; then
        strip --strip-unneeded -o "$to/$(basename "$extra")" "$extra"
    fi
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The wheel's libtorch.so is an empty shell that drags CUDA in; this one does not.
echo > "$work/empty.c"
cc -shared -s -Wl,-soname,libtorch.so -o "$to/libtorch.so" "$work/empty.c"

missing() {
    readelf --dynamic "$to/libtorch_cpu.so" | sed -n 's/.*NEEDED.*\[\(lib\(cudart\|cupti\)\.so\.[0-9]*\)\].*/\1/p'
}
for library in $(missing); do
    functions=$(nm --dynamic --undefined-only "$to/libtorch_cpu.so" | sed -n "s/.* U \(.*\)@$library\$/\1/p")
    for function in $functions; do
        echo "int $function(void) { return 999; }"
    done > "$work/stub.c"
    {
        echo "$library { global:"
        for function in $functions; do
            echo "  $function;"
        done
        echo "  local: *; };"
    } > "$work/stub.map"
    cc -shared -Os -s "-Wl,-soname,$library" "-Wl,--version-script=$work/stub.map" \
        -o "$to/$library" "$work/stub.c"
done
