#!/usr/bin/env bash
# Builds and runs the programs beside this script against the library in each way it can be had:
#
#   tests/consume/run.sh <work folder> <build tree of the static library> <Python with the wheel>
#
# as a part of their own build, from a static and a shared install tree that have been moved, and from
# the wheel; with CMake, and with pkg-config. Against what is installed they are built and run in a
# root of their own, in which there is a compiler and CMake, but no Python, no sources and no build
# tree. Needs Linux and leave to make a namespace (root's, or a user's).
#
# The python3 on the PATH has scipy-openblas64, as for any build.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source=$(cd "$here/../.." && pwd)
(($# == 3)) || { sed -n '4p' "$0"; exit 2; }
mkdir -p "$1"
work=$(cd "$1" && pwd)
static=$(cd "$2" && pwd)
wheel=$3
step() { printf '== consume: %s (%d s)\n' "$1" "$SECONDS"; }
fail() { printf 'consume: %s\n' "$*" >&2; exit 1; }

root=$work/root
rm -rf "$root" "$work/installed"
mkdir -p "$root"/{dev,proc,tmp,opt,usr/{bin,lib,include}}
ln -s usr/bin usr/lib "$root"
if [[ -d /usr/lib64 ]]; then mkdir "$root/usr/lib64" && ln -s usr/lib64 "$root"; fi
cp -r "$here" "$root/consume"

# inside <command>... runs it in that root.
inside() {
  env -i "$(command -v unshare)" --mount --map-root-user "$(command -v bash)" -euc '
    root=$1
    shift
    for folder in /dev /proc /usr/lib /usr/lib64 /usr/include; do
      if [ -d "$root$folder" ]; then mount --rbind "$folder" "$root$folder"; fi
    done
    exec chroot "$root" /usr/bin/env -i PATH=/usr/bin "$@"' inside "$root" "$@"
}

# Tools by the names that compilers and CMake look for; CMake and its modules from wherever it lies.
for tool in c++ cc g++ gcc as ld ar ranlib nm ninja pkg-config sh env; do
  cp -L "$(command -v $tool)" "$root/usr/bin/$tool"
done
echo 'message("${CMAKE_COMMAND} ${CMAKE_ROOT}")' >"$work/where.cmake"
read -r cmake modules <<<"$(cmake -P "$work/where.cmake" 2>&1)"
mkdir "$root/usr/share"
cp -L "$cmake" "$root/usr/bin/cmake"
cp -r "$modules" "$root/usr/share/"
if inside sh -c 'command -v python || command -v python3 || ls "$0"' "$source" 2>/dev/null; then
  fail "there is a Python, or the sources, in the root of the consumers"
fi

# installed <folder>: it names none of this machine's folders, not even for its libraries' neighbours.
installed() {
  if grep -rlF -e "$source" -e "$work" -e "$static" "$1"; then
    fail "a file of $1 names a folder of this machine"
  fi
  for library in $(find "$1" -name '*.so*' -type f); do
    if readelf -d "$library" | grep -E 'R(UN)?PATH' | grep -vE '\[\$ORIGIN[^:]*(:\$ORIGIN[^:]*)*\]'; then
      fail "$library looks for others elsewhere than beside itself"
    fi
  done
}

# runs <program> <folder>: by its bare name it succeeds, and takes its libraries from the folder or the
# system.
runs() {
  local others by_name=("PATH=${1%/*}" "${1##*/}")
  inside "${by_name[@]}" || fail "$1 failed"
  others=$(inside LD_TRACE_LOADED_OBJECTS=1 "${by_name[@]}" | grep -vE \
    '^\s*(linux-vdso|/lib|lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|gfortran|quadmath)\.so)' |
    grep -vF " => $2/" || true)
  [[ -z $others ]] || fail "$1 needs $others"
}

# consume <name> <folder> <arguments to CMake>...: the programs from the package in that folder.
consume() {
  inside cmake -S /consume -B "/build/$1" -G Ninja -DCMAKE_BUILD_TYPE=Release "${@:3}" >"$work/$1.log" ||
    { cat "$work/$1.log"; fail "$1: not configured"; }
  inside cmake --build "/build/$1" >"$work/$1.log" || { cat "$work/$1.log"; fail "$1: not built"; }
  runs "/build/$1/cpp/consume_cpp" "$2"
  runs "/build/$1/c/consume_c" "$2"
}

# with_pkg_config <name> <folder> <options>...
with_pkg_config() {
  mkdir -p "$root/build/$1"
  inside sh -euc '
    export PKG_CONFIG_PATH=$2/lib/pkgconfig
    rpath=-Wl,-rpath,$(pkg-config --variable=libdir descramble_fast)
    flags=$(pkg-config --cflags descramble_fast)
    libraries=$(pkg-config --libs $3 descramble_fast)
    c++ -std=c++20 $flags /consume/cpp/main.cpp -o "/build/$1/cpp" $libraries "$rpath"
    cc -std=c99 $flags /consume/c/main.c -o "/build/$1/c" $libraries "$rpath" -lm
    ' with_pkg_config "$1" "$2" "${3-}"
  runs "/build/$1/cpp" "$2"
  runs "/build/$1/c" "$2"
}

step "as a part of another build"
# Shared, so that this is the shared library to install, too.
cmake -S "$here" -B "$work/subdirectory" -G Ninja -DDESCRAMBLE_FAST_SOURCE="$source" \
  -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DDESCRAMBLE_FAST_INSTALL=ON \
  -DDESCRAMBLE_FAST_CUDA=OFF -DPython_EXECUTABLE="$(command -v python3)" >/dev/null
cmake --build "$work/subdirectory" >"$work/subdirectory.log" ||
  { cat "$work/subdirectory.log"; fail "subdirectory: not built"; }
"$work/subdirectory/cpp/consume_cpp"
"$work/subdirectory/c/consume_c"
# Left to itself it is built as the parent's libraries are, and installs nothing.
cmake -S "$here" -B "$work/defaults" -G Ninja -DDESCRAMBLE_FAST_SOURCE="$source" \
  -DDESCRAMBLE_FAST_CUDA=OFF -DPython_EXECUTABLE="$(command -v python3)" >/dev/null
grep -q 'libdescramble_fast\.a:' "$work/defaults/build.ninja" || fail "subdirectory: not static"
cmake --install "$work/defaults" --prefix "$work/installed" >/dev/null
[[ ! -e $work/installed ]] || fail "subdirectory: installs $(ls "$work/installed")"

step "static, installed and moved"
cmake --install "$static" --prefix "$work/installed" >/dev/null
mv "$work/installed" "$root/opt/static"
installed "$root/opt/static"
consume static /opt/static -DCMAKE_PREFIX_PATH=/opt/static -DEACH_HEADER=ON
with_pkg_config static-pkg-config /opt/static --static

step "shared, installed and moved"
cmake --install "$work/subdirectory" --prefix "$work/installed" >/dev/null
mv "$work/installed" "$root/opt/shared"
installed "$root/opt/shared"
cmake -DNM=nm -DLIBRARY="$root/opt/shared/lib/libdescramble_fast.so" -P "$here/exported_symbols.cmake"
consume shared /opt/shared -DCMAKE_PREFIX_PATH=/opt/shared
with_pkg_config shared-pkg-config /opt/shared

step "beside a package that has been found"
cmake -S "$here" -B "$work/both" -G Ninja -DDESCRAMBLE_FAST_SOURCE="$source" -DFIND_FIRST=ON \
  -DCMAKE_PREFIX_PATH="$root/opt/shared" >/dev/null

step "the wheel"
package=$("$wheel" -m descramble_fast --cmake-dir)
folder=${package%/lib/cmake/descramble_fast}
[[ $("$wheel" -m descramble_fast --include-dir) == "$folder/include" ]]
mkdir -p "$root$folder"
cp -r "$folder/." "$root$folder"
installed "$root$folder/lib"
cmake -DNM=nm -DLIBRARY="$folder/lib/libdescramble_fast.so" -P "$here/exported_symbols.cmake"
consume wheel "$folder" -Ddescramble_fast_DIR="$package"
step "done"
