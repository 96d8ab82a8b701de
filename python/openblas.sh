#!/bin/sh
# Builds OpenBLAS as a wheel brings it: real numbers, no LAPACK of Fortran, and kernels for three kinds of processor of those
# that differ most, into the folder $1, as a static library with its openblas.pc. What a system's package has besides is four
# fifths of a wheel.
set -eu
folder=$1
version=0.3.21
url=http://deb.debian.org/debian/pool/main/o/openblas/openblas_$version+ds.orig.tar.xz
sha256=bbec5cca61c8033b2d57aaecde205d709323a0b35a5f193290081dbb3826848a

case $(uname -m) in
    x86_64) kernels="TARGET=PRESCOTT DYNAMIC_LIST='HASWELL SKYLAKEX'" ;;
    aarch64) kernels="TARGET=ARMV8 DYNAMIC_LIST='CORTEXA57 NEOVERSEN1'" ;;
    *) echo "openblas.sh: no kernels are named for $(uname -m)" >&2; exit 1 ;;
esac

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
curl -fsSL "$url" -o "$folder/openblas.tar.xz"
echo "$sha256  $folder/openblas.tar.xz" | sha256sum -c - >/dev/null
tar -xJf "$folder/openblas.tar.xz" -C "$folder"
cd "$folder/OpenBLAS-$version"
eval make -s -j"$(nproc)" libs "$kernels" DYNAMIC_ARCH=1 BUILD_SINGLE=1 BUILD_DOUBLE=1 NOFORTRAN=1 NO_LAPACKE=1 \
    USE_THREAD=1 NUM_THREADS=64 NO_AFFINITY=1 >"$folder/build.log" 2>&1 || { tail "$folder/build.log" >&2; exit 1; }
cp -L libopenblas.a "$folder/"
cp LICENSE "$folder/LICENSE"
cat >"$folder/openblas.pc" <<END
Name: openblas
Description: OpenBLAS of a wheel, static
Version: $version
Libs: -L$folder -lopenblas -lpthread -lm
END
rm -r "$folder/OpenBLAS-$version" "$folder/openblas.tar.xz"
