#!/bin/bash
# Runs a guest image on bare Bochs, whose own VMX then serves L1: no Linux, no KVM below it.
# usage: run.sh IMAGE [SECONDS] [CPU MODEL]
# NVMX_BOCHS_DISK: an image that the guest has as the master of the second ATA channel.
# Prints what the guest wrote on the serial port. Exit code 0 if its last line ends in "ok" or says
# "skipped", 1 if not, 2 if Bochs or a boot file is missing (the reason is on the last line).
set -u
IMAGE=${1:?usage: run.sh IMAGE [SECONDS] [CPU MODEL]}
LIMIT=${2:-60}
CPU=${3:-corei7_icelake_u}
MODULES=/usr/lib/syslinux/modules/bios
ISOLINUX=/usr/lib/ISOLINUX/isolinux.bin

missing() { echo "SKIPPED: $1"; exit 2; }
for tool in bochs xorriso script; do
  command -v $tool >/dev/null || missing "$tool is not installed (packages: bochs bochs-term bochsbios xorriso bsdutils)"
done
for file in "$ISOLINUX" $MODULES/{ldlinux,libcom32,mboot}.c32 /usr/share/bochs/BIOS-bochs-latest; do
  [ -r "$file" ] || missing "$file is missing (packages: isolinux syslinux-common bochsbios)"
done

W=$(mktemp -d) || missing "no temporary directory"
trap 'rm -rf "$W"' EXIT
mkdir -p "$W/iso/isolinux"
cp "$IMAGE" "$W/iso/guest.elf" || exit 1
cp "$ISOLINUX" $MODULES/{ldlinux,libcom32,mboot}.c32 "$W/iso/isolinux/"
printf 'DEFAULT g\nPROMPT 0\nTIMEOUT 1\nLABEL g\n KERNEL mboot.c32\n APPEND /guest.elf\n' > "$W/iso/isolinux/isolinux.cfg"
xorriso -as mkisofs -quiet -o "$W/boot.iso" -b isolinux/isolinux.bin -c isolinux/boot.cat \
  -no-emul-boot -boot-load-size 4 -boot-info-table "$W/iso" 2>/dev/null || exit 1
# The debugger of Debian's build waits for a command: go on. Sound must be dummy or Bochs aborts.
echo c > "$W/go"
cat > "$W/bochsrc" <<R
config_interface: textconfig
display_library: term
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
megs: 64
cpu: model=$CPU, count=1, ips=50000000, reset_on_triple_fault=0, ignore_bad_msrs=1
clock: sync=none, time0=1700000000
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path=$W/boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$W/serial.txt
log: $W/bochs.log
panic: action=fatal
error: action=report
info: action=report
debug: action=ignore
sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy
plugin_ctrl: speaker=0, sb16=0, es1370=0, gameport=0
R
if [ -n "${NVMX_BOCHS_DISK:-}" ]; then
  printf 'ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15\nata1-master: type=disk, path=%s, mode=flat\n' \
    "$NVMX_BOCHS_DISK" >> "$W/bochsrc"
fi
: > "$W/serial.txt"
TERM=xterm timeout "$LIMIT" script -qefc "stty rows 60 cols 140; exec bochs -q -f $W/bochsrc -rc $W/go" /dev/null \
  >"$W/term.out" 2>&1 </dev/null
cat "$W/serial.txt"
if [ -n "${NVMX_BOCHS_LOG:-}" ]; then cp "$W/bochs.log" "$NVMX_BOCHS_LOG"; fi
tail -n 1 "$W/serial.txt" | grep -Eq 'ok$|skipped: '
