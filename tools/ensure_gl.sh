#!/bin/sh
# The simulator renders without a screen, through EGL or OSMesa. Installs Mesa's EGL where it may; otherwise prints
# the one line to run.
set -eu

PACKAGES="libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri libgles2 libglib2.0-0"

# Debian leaves /sbin out of a user's PATH.
has_library() { PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | grep -q "$1"; }

if has_library libGL.so.1 && { has_library libEGL.so.1 || has_library libOSMesa.so; }; then
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "No EGL or OSMesa library found. Install Mesa's EGL with your system's package manager." >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    SUDO=""
elif sudo -n true 2>/dev/null; then
    SUDO="sudo"
else
    echo "No EGL or OSMesa library found. Run this line, then try again:" >&2
    echo "    sudo apt-get install -y $PACKAGES" >&2
    exit 1
fi
$SUDO apt-get update -qq
$SUDO env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $PACKAGES
