// SPDX-License-Identifier: MIT

/**
 * @file
 * Opening a place on a disk, and its slots. See disk.h.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "disk.h"

/* Since Linux 6.1; older headers do not have it. */
#define USW_STATX_DIOALIGN 0x2000u
/* A file system is left this much, or a 64th of it: others write to it too. */
#define USW_DISK_MARGIN_BYTES (16u << 20)
/* A file grows by so many slots: holes, but where the file system has none. */
#define USW_REACH_SLOTS 64u

static int refuse(struct usw_error *error, int code, const char *path, const char *why,
		  const char *remedy)
{
	error->code = code;
	snprintf(error->text, sizeof(error->text), "cannot use %.700s as a disk tier: %s; %s", path,
		 why, remedy);
	return -code;
}

// --- Opening ------------------------------------------------------------------------------------

static int open_folder(struct usw_disk *disk, struct usw_error *error)
{
	disk->fd = open(disk->path, O_TMPFILE | O_RDWR | O_CLOEXEC | O_DIRECT, 0600);
	if (disk->fd < 0 && errno == EINVAL)
		disk->fd = open(disk->path, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (disk->fd >= 0)
		return 0;
	if (errno == EOPNOTSUPP || errno == EISDIR)
		return refuse(error, EOPNOTSUPP, disk->path,
			      "its file system has no nameless files (O_TMPFILE)",
			      "name a file in it, or a folder elsewhere");
	return refuse(error, errno, disk->path, strerror(errno),
		      "give a folder that can be written to, or run with --no-disk");
}

static int refuse_content(struct usw_disk *disk, struct usw_error *error)
{
	usw_cleanup_close(&disk->fd);
	disk->fd = -1;
	return refuse(error, EEXIST, disk->path, "there is something in this file already",
		      "give an empty or a new file, or a folder");
}

static bool is_empty_file(int fd)
{
	struct stat status;

	return fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_size == 0;
}

static int open_file(struct usw_disk *disk, bool exists, struct usw_error *error)
{
	int flags = O_RDWR | O_CLOEXEC | (exists ? 0 : O_CREAT | O_EXCL);

	disk->fd = open(disk->path, flags | O_DIRECT, 0600);
	if (disk->fd < 0 && errno == EINVAL)
		disk->fd = open(disk->path,
				O_RDWR | O_CLOEXEC | (exists ? 0 : O_CREAT | O_NOFOLLOW), 0600);
	if (disk->fd < 0)
		return refuse(error, errno, disk->path, strerror(errno),
			      "give a folder, file or block device that can be written to");
	if (flock(disk->fd, LOCK_EX | LOCK_NB) == 0) {
		// What was looked at by its name may be another by now.
		if (!is_empty_file(disk->fd))
			return refuse_content(disk, error);
		disk->is_ours = !exists;
		return 0;
	}
	// What is in it is the other's: closing must not cut it.
	usw_cleanup_close(&disk->fd);
	disk->fd = -1;
	return refuse(error, EBUSY, disk->path, "another session uses it",
		      "give each session a place of its own, or a folder");
}

static int open_device(struct usw_disk *disk, struct usw_error *error)
{
	uint64_t bytes = 0;

	disk->is_device = true;
	// O_EXCL on a device: not while a file system or a swap area on it is in use.
	disk->fd = open(disk->path, O_RDWR | O_CLOEXEC | O_EXCL | O_DIRECT);
	if (disk->fd < 0)
		return refuse(error, errno, disk->path, strerror(errno),
			      "it must be writable and not in use");
	if (ioctl(disk->fd, BLKGETSIZE64, &bytes) < 0)
		return refuse(error, errno, disk->path, strerror(errno), "is it a disk?");
	disk->slot_limit = (uint32_t)usw_min(bytes / USW_SLOT_BYTES, USW_DISK_SLOTS);
	return disk->slot_limit ? 0
				: refuse(error, ENOSPC, disk->path, "it is smaller than a segment",
					 "give a larger one");
}

static int open_any(struct usw_disk *disk, struct usw_error *error)
{
	struct stat status;
	bool exists = stat(disk->path, &status) == 0;

	if (!exists && errno != ENOENT)
		return refuse(error, errno, disk->path, strerror(errno),
			      "give a folder, file or block device");
	if (exists && S_ISDIR(status.st_mode))
		return open_folder(disk, error);
	if (exists && S_ISBLK(status.st_mode))
		return open_device(disk, error);
	if (exists && !S_ISREG(status.st_mode))
		return refuse(error, EINVAL, disk->path,
			      "it is neither a folder nor a file nor a block device",
			      "give one of those");
	if (exists && status.st_size > 0)
		return refuse_content(disk, error);
	return open_file(disk, exists, error);
}

/** What O_DIRECT asks for here; a place that asks for too much goes through the page cache. */
static void learn_alignment(struct usw_disk *disk)
{
	int flags = fcntl(disk->fd, F_GETFL);
	struct statx status;
	uint32_t memory = 0, offset = 0;

	disk->is_direct = flags & O_DIRECT;
	disk->align_bytes = USW_DISK_ALIGN_MAX;
	if (statx(disk->fd, "", AT_EMPTY_PATH, USW_STATX_DIOALIGN, &status) == 0 &&
	    status.stx_mask & USW_STATX_DIOALIGN) {
		// stx_dio_mem_align and stx_dio_offset_align, by their place in the structure.
		memcpy(&memory, (char *)&status + 0x98, sizeof(memory));
		memcpy(&offset, (char *)&status + 0x9c, sizeof(offset));
		uint32_t align = (uint32_t)usw_max(memory, offset);

		if (offset && align <= USW_DISK_ALIGN_MAX)
			disk->align_bytes = align < 512 ? 512 : align;
		else
			disk->is_direct = false;
	}
	if (!disk->is_direct)
		fcntl(disk->fd, F_SETFL, flags & ~O_DIRECT);
}

int usw_disk_open(struct usw_disk *disk, const char *path, uint64_t cap_bytes,
		  struct usw_error *error)
{
	memset(disk, 0, sizeof(*disk));
	disk->fd = -1;
	disk->cap_bytes = cap_bytes;
	disk->slot_limit = USW_DISK_SLOTS;
	if (strlen(path) >= sizeof(disk->path))
		return refuse(error, ENAMETOOLONG, path, "its name is too long", "give another");
	strcpy(disk->path, path);
	if (cap_bytes < USW_SLOT_BYTES)
		return refuse(error, EINVAL, path, "its size is smaller than a segment (1.1 MiB)",
			      "give more");
	pthread_mutex_init(&disk->lock, NULL);
	int ret = open_any(disk, error);
	if (ret) {
		usw_disk_close(disk);
		return ret;
	}
	learn_alignment(disk);
	return 0;
}

/** The path still names our file: it may have been removed, and another be there by now. */
static bool is_still_there(const struct usw_disk *disk)
{
	struct stat ours, there;

	return fstat(disk->fd, &ours) == 0 && lstat(disk->path, &there) == 0 &&
	       ours.st_dev == there.st_dev && ours.st_ino == there.st_ino;
}

void usw_disk_close(struct usw_disk *disk)
{
	if (disk->is_ours && is_still_there(disk))
		unlink(disk->path);
	else if (disk->fd >= 0 && !disk->is_device && ftruncate(disk->fd, 0) < 0)
		errno = 0; // the key is gone: what is left tells nothing
	usw_cleanup_close(&disk->fd);
	disk->fd = -1;
	disk->is_ours = false;
	pthread_mutex_destroy(&disk->lock);
}

// --- Slots --------------------------------------------------------------------------------------

/** The lowest free slot; slot_limit if there is none. Caller holds disk->lock. */
static uint32_t find_slot(struct usw_disk *disk)
{
	for (uint32_t i = disk->hint; i < USW_DISK_SLOTS / 64; i++) {
		if (disk->used[i] == UINT64_MAX)
			continue;
		disk->hint = i;
		return (uint32_t)usw_min(i * 64 + (uint32_t)__builtin_ctzll(~disk->used[i]),
					 disk->slot_limit);
	}
	return disk->slot_limit;
}

int usw_disk_take(struct usw_disk *disk, uint32_t length_bytes, uint32_t *ret_slot)
{
	int ret = -ENOSPC;

	usw_assert(length_bytes > 0 && length_bytes <= USW_SLOT_BYTES);
	pthread_mutex_lock(&disk->lock);
	uint32_t slot = find_slot(disk);
	if (slot < disk->slot_limit && length_bytes <= disk->cap_bytes - disk->held_bytes) {
		disk->used[slot / 64] |= (uint64_t)1 << (slot % 64);
		disk->used_slots++;
		disk->held_bytes += length_bytes;
		disk->peak_bytes = usw_max(disk->peak_bytes, disk->held_bytes);
		*ret_slot = slot;
		ret = 0;
	}
	pthread_mutex_unlock(&disk->lock);
	return ret;
}

void usw_disk_reach(struct usw_disk *disk, uint32_t slot)
{
	if (disk->is_device || usw_disk_offset(slot + 1) <= disk->reach_bytes)
		return;
	uint32_t end = (slot / USW_REACH_SLOTS + 1) * USW_REACH_SLOTS;

	disk->reach_bytes = usw_disk_offset(end);
	if (ftruncate(disk->fd, (off_t)disk->reach_bytes) < 0)
		errno = 0;
}

void usw_disk_give(struct usw_disk *disk, uint32_t slot, uint32_t length_bytes)
{
	uint64_t bit = (uint64_t)1 << (slot % 64);

	// A failure only leaves the space held until the slot is written again. On a device the
	// same call tells a thin or flash disk that nothing is there any more.
	while (fallocate(disk->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			 (off_t)usw_disk_offset(slot), length_bytes) < 0 &&
	       errno == EINTR)
		;
	pthread_mutex_lock(&disk->lock);
	usw_assert(disk->used[slot / 64] & bit && disk->held_bytes >= length_bytes);
	disk->used[slot / 64] &= ~bit;
	disk->used_slots--;
	disk->held_bytes -= length_bytes;
	if (slot / 64 < disk->hint)
		disk->hint = slot / 64;
	pthread_mutex_unlock(&disk->lock);
}

uint64_t usw_disk_held_bytes(struct usw_disk *disk)
{
	pthread_mutex_lock(&disk->lock);
	uint64_t bytes = disk->held_bytes;
	pthread_mutex_unlock(&disk->lock);
	return bytes;
}

uint64_t usw_disk_free_bytes(struct usw_disk *disk, uint64_t unwritten_bytes)
{
	struct statvfs status;

	pthread_mutex_lock(&disk->lock);
	uint64_t bytes = usw_min(disk->cap_bytes - disk->held_bytes,
				 (uint64_t)(disk->slot_limit - disk->used_slots) * USW_SLOT_BYTES);
	pthread_mutex_unlock(&disk->lock);
	if (!disk->is_device && fstatvfs(disk->fd, &status) == 0) {
		uint64_t all = (uint64_t)status.f_blocks * status.f_frsize;
		uint64_t available = (uint64_t)status.f_bavail * status.f_frsize;
		uint64_t margin = usw_min(USW_DISK_MARGIN_BYTES, all / 64) + unwritten_bytes;

		bytes = usw_min(bytes, available > margin ? available - margin : 0);
	}
	return bytes;
}
