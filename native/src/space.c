// SPDX-License-Identifier: MIT

/**
 * @file
 * Sparse memfds. See space.h.
 */

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "space.h"

int usw_space_create(struct usw_space *space, const char *name, uint64_t reserved_bytes)
{
	_cleanup_close_ int fd = memfd_create(name, MFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)reserved_bytes) < 0)
		return -errno;

	void *base = mmap(NULL, reserved_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
			  fd, 0);
	if (base == MAP_FAILED)
		return -errno;
	usw_space_keep_small(base, reserved_bytes);
	*space = (struct usw_space){.fd = fd, .base = base, .reserved_bytes = reserved_bytes};
	fd = -1;
	return 0;
}

void usw_space_keep_small(void *base, uint64_t length_bytes)
{
	// Fails where the kernel knows no huge pages.
	madvise(base, length_bytes, MADV_NOHUGEPAGE);
}

void usw_space_destroy(struct usw_space *space)
{
	if (!space->base)
		return;
	munmap(space->base, space->reserved_bytes);
	close(space->fd);
	*space = (struct usw_space){.fd = -1};
}

void usw_space_punch(struct usw_space *space, uint64_t offset, uint64_t length_bytes)
{
	usw_assert(offset % USW_PAGE_BYTES == 0 && length_bytes % USW_PAGE_BYTES == 0);
	usw_assert(offset + length_bytes <= space->reserved_bytes);

	// A failure (a signal in the middle) only leaves memory held for longer, and readers do
	// not depend on zeros, but allocators do: fall back to writing them.
	while (fallocate(space->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
			 (off_t)length_bytes) < 0) {
		if (errno == EINTR)
			continue;
		__builtin_memset(space->base + offset, 0, length_bytes);
		return;
	}
}

uint64_t usw_space_held_bytes(const struct usw_space *space)
{
	struct stat status;

	if (fstat(space->fd, &status) < 0)
		return 0;
	return (uint64_t)status.st_blocks * 512;
}
