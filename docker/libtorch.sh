#!/bin/sh
# libtorch.sh LIB FOLDER
# Puts what libtorch_cpu needs of PyTorch's LIB folder into FOLDER, stripped. CC, STRIP and
# NM may name tools for another architecture.
#
# PyTorch's libtorch_cpu names libcudart and libcupti, which only its profiler calls. They
# are NVIDIA's and are not wanted here: libraries of the same names stand in, whose
# functions return cudaErrorUnknown and CUPTI_ERROR_UNKNOWN, which are both 999. They must
# lie beside libtorch_cpu, where its run path looks.
set -eu
from=$1
to=$2
cc=${CC:-cc}
strip=${STRIP:-strip}
nm=${NM:-nm}
mkdir -p "$to"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The wheel's libtorch.so is an empty shell that drags CUDA in; this one does not.
echo > "$work/empty.c"
"$cc" -shared -s -Wl,-soname,libtorch.so -o "$to/libtorch.so" "$work/empty.c"

stand_in() {
    functions=$("$nm" --dynamic --undefined-only "$to/libtorch_cpu.so" | sed -n "s/.* U \(.*\)@$1\$/\1/p")
    for function in $functions; do
        echo "int $function(void) { return 999; }"
    done > "$work/stub.c"
    {
        echo "$1 { global:"
        for function in $functions; do
            echo "  $function;"
        done
        echo "  local: *; };"
    } > "$work/stub.map"
    "$cc" -shared -Os -s "-Wl,-soname,$1" "-Wl,--version-script=$work/stub.map" \
        -o "$to/$1" "$work/stub.c"
}

# Each library, and those that it needs in turn; what PyTorch does not bring is the system's.
add() {
    if [ -e "$to/$1" ]; then
        return
    fi
    case $1 in
        libcudart.so.* | libcupti.so.*) stand_in "$1" ;;
        *)
            if [ -e "$from/$1" ]; then
                "$strip" --strip-unneeded -o "$to/$1" "$from/$1"
                for needed in $(readelf --dynamic "$to/$1" | sed -n 's/.*NEEDED.*\[\(.*\)\].*/\1/p'); do
                    add "$needed"
                done
            fi
            ;;
    esac
}
add libtorch_cpu.so
