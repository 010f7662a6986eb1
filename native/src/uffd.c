// SPDX-License-Identifier: MIT

/**
 * @file
 * Calls on a userfaultfd from outside. See uffd.h.
 */

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

#include "uffd.h"

int usw_uffd_api(int uffd, uint64_t features)
{
	struct uffdio_api api = {.api = UFFD_API, .features = features};

	return ioctl(uffd, UFFDIO_API, &api) < 0 ? -errno : 0;
}

void usw_uffd_unblock(int uffd)
{
	int flags = fcntl(uffd, F_GETFL);

	if (flags >= 0 && !(flags & O_NONBLOCK))
		fcntl(uffd, F_SETFL, flags | O_NONBLOCK);
}

ssize_t usw_uffd_read(int uffd, struct uffd_msg *messages, size_t bytes)
{
	const struct iovec place = {.iov_base = messages, .iov_len = bytes};
	ssize_t got = preadv2(uffd, &place, 1, -1, RWF_NOWAIT);

	if (usw_unlikely(got < 0 && errno == EOPNOTSUPP)) { // before Linux 6.10
		usw_uffd_unblock(uffd);
		got = read(uffd, messages, bytes);
	}
	return got < 0 ? -errno : got;
}

int usw_uffd_copy(int uffd, uint64_t address, const void *source, uint64_t length_bytes,
		  uint64_t *ret_done)
{
	struct uffdio_copy copy = {
		.dst = address,
		.src = (uintptr_t)source,
		.len = length_bytes,
	};

	if (usw_likely(ioctl(uffd, UFFDIO_COPY, &copy) == 0)) {
		*ret_done = length_bytes;
		return 0;
	}

	int error = errno;
	*ret_done = copy.copy > 0 ? (uint64_t)copy.copy : 0;
	// A short copy is reported as EAGAIN whatever stopped it; the next call will say.
	return copy.copy < 0 ? (int)copy.copy : -error;
}

int usw_uffd_poison(int uffd, uint64_t address, uint64_t length_bytes)
{
	struct uffdio_poison poison = {.range = {.start = address, .len = length_bytes}};

	if (ioctl(uffd, UFFDIO_POISON, &poison) == 0)
		return 0;
	return errno == ENOTTY || errno == EINVAL ? -EOPNOTSUPP : -errno;
}

int usw_uffd_wake(int uffd, uint64_t address, uint64_t length_bytes)
{
	struct uffdio_range range = {.start = address, .len = length_bytes};

	return ioctl(uffd, UFFDIO_WAKE, &range) < 0 ? -errno : 0;
}

int usw_uffd_register(int uffd, uint64_t start, uint64_t length_bytes)
{
	struct uffdio_register argument = {
		.range = {.start = start, .len = length_bytes},
		.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
	};

	return ioctl(uffd, UFFDIO_REGISTER, &argument) < 0 ? -errno : 0;
}

int usw_uffd_unregister(int uffd, uint64_t start, uint64_t length_bytes)
{
	struct uffdio_range range = {.start = start, .len = length_bytes};

	return ioctl(uffd, UFFDIO_UNREGISTER, &range) < 0 ? -errno : 0;
}

static int write_protect(int uffd, uint64_t start, uint64_t length_bytes, uint64_t mode)
{
	struct uffdio_writeprotect argument = {
		.range = {.start = start, .len = length_bytes},
		.mode = mode,
	};

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &argument) < 0 ? -errno : 0;
}

int usw_uffd_protect(int uffd, uint64_t start, uint64_t length_bytes)
{
	return write_protect(uffd, start, length_bytes, UFFDIO_WRITEPROTECT_MODE_WP);
}

int usw_uffd_unprotect(int uffd, uint64_t start, uint64_t length_bytes)
{
	return write_protect(uffd, start, length_bytes, 0);
}

/** What is mapped at all of a range: none, if that is more than one mapping. */
static enum usw_uffd_kind probe(int uffd, uint64_t start, uint64_t length_bytes)
{
	struct uffdio_continue question = {.range = {.start = start, .len = length_bytes}};

	// CONTINUE maps what the page cache of a shared mapping has. The kernel looks for a
	// registered mapping first (ENOENT), then says that anonymous memory has no such thing.
	if (ioctl(uffd, UFFDIO_CONTINUE, &question) == 0)
		return USW_UFFD_SHARED;
	switch (errno) {
	case EINVAL:
		return USW_UFFD_ANONYMOUS;
	case EFAULT: // nothing in the cache
	case EEXIST:
		return USW_UFFD_SHARED;
	case ENOENT:
		return USW_UFFD_NONE;
	default: // EAGAIN: an event is unread; ESRCH
		return USW_UFFD_UNKNOWN;
	}
}

enum usw_uffd_kind usw_uffd_probe(int uffd, uint64_t page)
{
	enum usw_uffd_kind kind = probe(uffd, page, USW_PAGE_BYTES);

	// A change that begins during the call may keep it waiting, and is not asked for again by the
	// kernel where nothing is left: it is announced by now.
	return kind == USW_UFFD_NONE ? probe(uffd, page, USW_PAGE_BYTES) : kind;
}

bool usw_uffd_is_whole(int uffd, uint64_t start, uint64_t end)
{
	return probe(uffd, start, end - start) == USW_UFFD_ANONYMOUS;
}

bool usw_uffd_is_vacant(int uffd, uint64_t page)
{
	// To unregister what is not registered changes nothing, and fails where there is nothing.
	return usw_uffd_probe(uffd, page) == USW_UFFD_NONE &&
	       usw_uffd_unregister(uffd, page, USW_PAGE_BYTES) == -EINVAL;
}

bool usw_uffd_claim(int uffd, uint64_t page)
{
	return usw_uffd_register(uffd, page, USW_PAGE_BYTES) == 0;
}

bool usw_uffd_is_dead(int uffd)
{
	struct uffdio_continue question = {
		.range = {.start = (uint64_t)1 << 32, .len = USW_PAGE_BYTES}};

	// See usw_uffd_probe(): while there is an address space to look in, the answer is another.
	return ioctl(uffd, UFFDIO_CONTINUE, &question) < 0 && errno == ESRCH;
}
