// SPDX-License-Identifier: MIT

/**
 * @file
 * shmat(2) with SHM_REMAP, as a managed program calls it.
 *
 * It is the one call that puts something in the place of memory without an event of userfaultfd.
 * What had left of that memory would be taken for the content of what is mapped there later, and
 * what is there now for registered memory: pages taken out of it would come back as zeros. From
 * outside it can be seen too late only, since growing memory is registered without a look at what
 * was there before. So the segment is attached at a place of its own and moved, which raises the
 * event, and is as much one step as the call itself. All else goes to the kernel as it is, and so
 * does this call if it fails: then the kernel says why.
 *
 * C libraries do not call shmat() themselves, so all of a program but raw system calls comes here.
 */

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/shm.h>

#include "hands.h"
#include "public/uffdswap.h"

/**
 * Attach a segment where nothing is mapped, and not in the range that it is to be moved to. That
 * may have gaps; no more than two such places fit into them.
 */
static long attach_elsewhere(int id, uintptr_t start, size_t bytes, int flags)
{
	long place = usw_raw(SYS_shmat, id, NULL, flags & ~(SHM_REMAP | SHM_RND));
	long other;

	if (usw_raw_failed(place) || (uintptr_t)place >= start + bytes ||
	    start >= (uintptr_t)place + bytes)
		return place;
	other = attach_elsewhere(id, start, bytes, flags);
	usw_raw(SYS_shmdt, place);
	return other;
}

/** Put a segment in the place of what is mapped. Returns its address, or -errno. */
static long attach_over(int id, uintptr_t address, int flags)
{
	uintptr_t start = flags & SHM_RND ? address & ~(uintptr_t)(USW_PAGE_BYTES - 1) : address;
	struct shmid_ds segment;
	size_t bytes;
	long place;
	long result = usw_raw(SYS_shmctl, id, IPC_STAT, &segment);

	if (usw_raw_failed(result))
		return result;
	bytes = (segment.shm_segsz + USW_PAGE_BYTES - 1) & ~(size_t)(USW_PAGE_BYTES - 1);
	if (!start || start % USW_PAGE_BYTES || start + bytes < start)
		return -EINVAL;
	place = attach_elsewhere(id, start, bytes, flags);
	if (usw_raw_failed(place))
		return place;
	result = usw_raw(SYS_mremap, place, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, start);
	if (usw_raw_failed(result))
		usw_raw(SYS_shmdt, place);
	return result;
}

__attribute__((visibility("default"))) void *shmat(int id, const void *address, int flags)
{
	long result = -EINVAL;

	if ((flags & SHM_REMAP) && uffdswap_is_managed())
		result = attach_over(id, (uintptr_t)address, flags);
	if (usw_raw_failed(result))
		result = usw_raw(SYS_shmat, id, address, flags);
	if (!usw_raw_failed(result))
		return (void *)result;
	errno = (int)-result;
	return (void *)-1;
}
