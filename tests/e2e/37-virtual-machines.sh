#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# make check-more
# timeout: 7200
# Virtual machines of a real libvirtd: what discover says of them; their disks go under protection together or not at
# all, while they run, and no write is lost; at an application-consistent mark their file systems are clean, and they
# are thawed whatever happens: asrctl or its helper killed, an agent that hangs, somebody else's thaw.
#
# The test VM runs Debian's libvirtd and QEMU in a root of its own (nested.sh), and in that a machine of one file
# system, whose n a program counts up, and QEMU's guest agent.
set -eu
if [ -n "${ASR_GUEST:-}" ] && [ "${1:-}" != inside ]; then
	# shellcheck source=tests/lib.sh
	. /asr/lib.sh
	refused 'libvirt is not installed here' asrctl discover
	mount -t ext4 /dev/d4 /mnt
	mkdir -p /mnt/asr
	for d in dev proc sys run asr; do
		mount --rbind /$d /mnt/$d
	done
	modprobe dm_mod
	exec busybox chroot /mnt /bin/bash "/asr/test.sh" inside
fi
if [ -n "${ASR_GUEST:-}" ]; then
	export PATH=/asr/bin:/usr/sbin:/usr/bin
	# shellcheck source=tests/e2e/guest-lib.sh
	. /asr/in/guest-lib.sh
	# shellcheck source=tests/vm/nested-lib.sh
	. /asr/in/nested-lib.sh
	slow=15		# an emulated machine in an emulated machine: what it is to do takes its time
	insmod /asr/dm-asr.ko
	mkdir -p /run/asr /var/lib/asr /m
	asrd_start
	want asrctl register --key /asr/in/regkey --host source
	for g in g h; do
		want asrctl group create $g --recipient /asr/in/recipient.crt --ring-size 16M
	done
	for i in 0 1 3; do
		want dmsetup create v$i --table "0 $(blockdev --getsz /dev/d$i) linear /dev/d$i 0"
	done
	want mkfs.ext4 -q /dev/mapper/v0
	want mkfs.ext4 -q /dev/mapper/v3
	want cp /asr/in/c.qcow2 /root/
	libvirt_up
	domain shop "$(block vda /dev/mapper/v0; block vdb /dev/mapper/v1; file vdc qcow2 /root/c.qcow2; cdrom hdc)"
	domain plain "$(block vda /dev/d2)"
	domain twice "$(block vda /dev/mapper/v1; block vdb /dev/mapper/v1)"
	want virsh start shop
	want virsh start --paused plain
	says() { # FILTER JSON: of what discover says
		local is
		is=$(asrctl discover -o json | jq -c "$1") || fail "discover"
		[ "$is" = "$2" ] || fail "discover says $is, and not $2"
	}
	nothing_protected() { [ "$(asrctl disk list -o json | jq -c .disks)" = '[]' ] || fail "protected: $(asrctl disk list)"; }

	say "what there is"
	mib=$((DISK_MIB * 1048576))
	says '[.domains[] | [.name, .state]] | sort' '[["plain","paused"],["shop","running"],["twice","shut off"]]'
	says '.domains[] | select(.name == "shop").disks | map([.target, .device, .format, .bytes, .protected])' \
		"[[\"vda\",\"disk\",\"raw\",$mib,false],[\"vdb\",\"disk\",\"raw\",$mib,false],$(
		)[\"vdc\",\"disk\",\"qcow2\",16777216,false],[\"hdc\",\"cdrom\",null,null,false]]"
	says '[.domains[] | select(.name == "shop").disks[] | .reason != null]' '[false,false,true,true]'
	says '.domains[] | select(.name == "plain").disks[0].reason | test("not a device-mapper device.*running")' true
	asrctl discover | grep -Eq '^shop +running +vdc +qcow2 +16.0 MiB +no +/root/c.qcow2' || fail "$(asrctl discover)"

	say "what is refused"
	protect() { asrctl vm protect "$@" --no-wait; }
	refused 'no domain nobody; there are: .*shop' protect nobody --group g
	refused 'no group no; there are: .*g' protect shop --group no --exclude vdc
	refused 'no disk vdz to be left out; it has: vda, vdb, vdc, hdc' protect shop --group g --exclude vdz
	refused 'vdc of domain shop: /root/c.qcow2 is a file .qcow2.*--exclude vdc' protect shop --group g
	refused 'has no disk to protect' protect shop --group g --exclude vda --exclude vdb --exclude vdc
	refused '/dev/d2 is not a device-mapper device.* shut it off' protect plain --group g
	refused "another host's libvirt" protect shop --group g --connect qemu+ssh://other/system
	refused 'does not answer' protect shop --group g --connect qemu+unix:///system?socket=/nowhere
	refused 'no protected disk' asrctl vm unprotect shop
	nothing_protected
	say "... and when the second disk cannot be inserted, the first is taken out again"
	refused 'of domain twice nothing is protected that was not before' protect twice --group g
	nothing_protected
	want virsh destroy plain
	protect plain --group h >/run/out || fail "plain, shut off: $(cat /run/out)"
	grep -q "source dev='/dev/mapper/asr-plain-vda'" /run/out || fail "it said: $(cat /run/out)"
	says '.domains[] | select(.name == "plain").disks[0] | [.protected, (.reason | test("the device below it"))]' \
		'[false,true]'
	retry_until 30 asrctl vm unprotect plain || fail "unprotect plain"	# asrd may still have it open

	say "under protection, while it runs"
	guest_up
	want protect shop --group g --exclude vdc
	says '[.domains[] | select(.name == "shop").disks[] | [.group, .disk]]' \
		'[["g","shop-vda"],["g","shop-vdb"],[null,null],[null,null]]'
	want jq -e '.vm.name == "shop" and .vm.target == "vda"' /var/lib/asr/groups/g/disks/shop-vda.json
	protect shop --group g --exclude vdc | grep -c 'protected already' | grep -qx 2 || fail "not the second time"
	refused 'is disk shop-vda of group g already' protect shop --group h --exclude vdc
	retry_until 300 consistent || fail "no initial copy: $(asrctl status)"
	goes_on
	want asrctl group mark g --name crash-1

	say "marks at which it is quiet"
	mark() { asrctl group mark g --consistency app "$@" >/run/out 2>&1; }
	for i in 1 2; do
		retry_until $((60 * slow)) mark --timeout 300 --name quiet-$i || fail "no mark: $(cat /run/out)"
		grep -q '1 virtual machines frozen' /run/out || fail "it said: $(cat /run/out)"
		is_thawed || fail "frozen after the mark"
		goes_on
	done
	fails() { # TEXT OPTION...
		local text=$1
		shift
		not mark --name bad "$@" || fail "it went well: $(cat /run/out)"
		grep -Eq "$text" /run/out || fail "it said: $(cat /run/out), and not: $text"
	}
	say "an agent that is not there, that does not answer, and that answers late; a machine that stands still"
	guest end
	fails 'cannot freeze domain shop: .*agent' --timeout 60
	goes_on
	guest agent
	retry_until $((60 * slow)) is_thawed || fail "the agent does not come back"
	guest stop	# libvirt may ask it first whether it is there, or not
	fails 'cannot freeze domain shop: .*agent|the freeze of domain shop does not end; it will be thawed'
	guest go
	retry_until $((60 * slow)) is_thawed || fail "the agent does not come back, or is frozen"
	goes_on
	guest hang
	fails 'the freeze of domain shop does not end; it will be thawed' --timeout 8
	guest free
	retry_until $((60 * slow)) is_thawed || fail "frozen, and nobody thaws it"
	goes_on
	want virsh suspend shop
	fails 'domain shop is paused'
	want virsh resume shop
	goes_on

	say "asrctl is killed while it is frozen"
	want mount /dev/mapper/v3 /m
	want asrctl disk protect /dev/mapper/v3 --group g --name d3 --no-wait
	held() {
		kill -0 "${marker:-x}" 2>/dev/null || {
			asrctl group mark g --consistency app --name "${name:-bad}" --timeout 600 7>&- >/run/out 2>&1 &
			marker=$!
		}
		is_frozen
	}
	hold() { # a writer that is in /m hinders its freeze, for which the machine waits, frozen
		exec 7> >(asr-poke splice /m/spliced)
		writer=$!
		marker=
		retry_until $((60 * slow)) held || fail "never frozen: $(cat /run/out)"
	}
	let_go() {
		exec 7>&-
		wait $writer || fail "the writer"
	}
	hold
	kill -9 $marker
	retry_until $((60 * slow)) is_thawed || fail "frozen, and nobody thaws it"
	let_go
	goes_on
	say "... who has frozen it is killed"
	hold
	read -ra children <"/proc/$marker/task/$marker/children" || true	# no line end
	[ ${#children[@]} = 2 ] || fail "children: ${children[*]}"
	kill -9 "${children[1]}"
	let_go
	wait $marker && fail "it went well: $(cat /run/out)"
	grep -q 'had frozen domain shop was killed; it is thawed' /run/out || fail "it said: $(cat /run/out)"
	is_thawed || fail "frozen"
	goes_on
	say "... somebody else thaws it"
	hold
	want virsh domfsthaw shop
	let_go
	wait $marker && fail "it went well: $(cat /run/out)"
	grep -q 'domain shop was thawed by somebody else' /run/out || fail "it said: $(cat /run/out)"
	goes_on
	say "... libvirtd dies, and is started again"
	name=restarted
	hold
	libvirt_restart
	let_go
	wait $marker || true	# it is frozen until the new one thaws it: the mark may count
	is_thawed || fail "frozen: $(cat /run/out)"
	goes_on
	say "off, and out of protection"
	want umount /m
	want virsh destroy shop
	retry_until 300 drained || fail "does not drain: $(asrctl status)"
	want asrctl group mark g --name end
	retry_until 60 drained || fail "the mark does not arrive"
	want asrctl disk unprotect d3
	want asrctl vm unprotect shop
	nothing_protected
	says '[.domains[].disks[] | select(.protected)]' '[]'
	libvirt_down
	for i in 0 1 3; do
		want dmsetup remove v$i
	done
	for g in g h; do
		want asrctl group delete $g
	done
	kill "$ASRD_PID"
	wait "$ASRD_PID" || fail "asrd ended with status $?"
	exit 0
fi
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=tests/vm/nested.sh
. "$ASR_TOP/tests/vm/nested.sh"
nested=$TEST_OUT/nested
nested_build "$nested" "$SERIES_E2E" || fail "no machine to be run in the test VM"
want qemu-img create -q -f qcow2 "$nested/c.qcow2" 16M
site_up
disks=()
for i in 0 1 2 3; do
	truncate -s "${DISK_MIB:-32}M" "$VM_OUT/d$i.img"
	disks+=(--disk "$VM_OUT/d$i.img")
done
printf 'DISK_MIB=%s\n' "${DISK_MIB:-32}" | cat - "$ASR_TOP/tests/vm/nested-lib.sh" >"$nested/nested-lib.sh"
vm_start source "$SERIES_E2E" --net --mem 1280 --script "$0" "${disks[@]}" --disk "$nested/root.img,cache=unsafe" \
	--add "$E2E/guest-lib.sh" --add "$W/regkey" --add "$W/recipient.crt" \
	--add "$nested/nested-lib.sh" --add "$nested/kernel" --add "$nested/initrd" --add "$nested/c.qcow2"
vm_wait source 6600 || fail "the source host"
vaultd_stop
want "$B/asrctl" point list g --vault-dir "$W/vault" -o json >"$W/points.json"
app=$(jq -r '[.marks[] | select(.consistency == "app") | .name] | join(" ")' "$W/points.json")
[ "$app" = "quiet-1 quiet-2" ] || [ "$app" = "quiet-1 quiet-2 restarted" ] ||
	fail "marks: $(jq -c .marks "$W/points.json")"
for mark in $app crash-1; do
	restore shop-vda "name:$mark" "$W/$mark.img"
	dumpe2fs -h "$W/$mark.img" >"$W/$mark.head" 2>/dev/null || fail "$mark: no file system"
	if [ $mark = crash-1 ]; then
		grep -q needs_recovery "$W/$mark.head" || fail "a crash-consistent point is clean: the test shows nothing"
		break
	fi
	! grep -q needs_recovery "$W/$mark.head" || fail "$mark: the file system was in use"
	want e2fsck -fn "$W/$mark.img"
	n=$(debugfs -R 'cat n' "$W/$mark.img" 2>/dev/null)
	[ "${n:-0}" -gt "${last:-0}" ] || fail "$mark: the machine had counted to ${n:-nothing}, and to ${last:-nothing} before"
	last=$n
done
same_as_source shop-vda="$VM_OUT/d0.img" shop-vdb="$VM_OUT/d1.img"
say "the machine had counted to $last at the last mark; its disks at the end are the source's, byte for byte"
rm -rf "$nested"
