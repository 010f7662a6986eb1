// SPDX-License-Identifier: MIT

/**
 * @file
 * The kernel interfaces that the C library's or the kernel's own headers may lack.
 *
 * Debian 12 ships the headers of Linux 6.1, whose userfaultfd features end at bit 12; the kernel
 * that runs may be newer by years. So everything from later releases is defined here, each under
 * a guard, and what a kernel offers is asked at run time (probe.c), never at build time. The
 * layouts below are ABI and cannot change. Where a newer system header already has a definition,
 * that one is used.
 *
 * Nothing here has code or state, so the shim and hands may include it as well.
 */

#ifndef USW_UFFD_ABI_H
#define USW_UFFD_ABI_H

#include <linux/fs.h>
#include <linux/ioctl.h>
#include <linux/types.h>
#include <linux/userfaultfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>

// --- userfaultfd: ways to open ------------------------------------------------------------------

/* Linux 5.11, 37cd0575b8510: handle faults of user mode only. uffdswap never asks for it. */
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

/* Linux 6.1, 2d5de004e009a: /dev/userfaultfd, whose file mode alone decides who may open it. */
#ifndef USERFAULTFD_IOC
#define USERFAULTFD_IOC 0xAA
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(USERFAULTFD_IOC, 0x00)
#endif

// --- userfaultfd: feature bits, all of them up to Linux 6.18 ------------------------------------

#ifndef UFFD_FEATURE_EXACT_ADDRESS /* 5.18: addresses in messages are not rounded to pages */
#define UFFD_FEATURE_EXACT_ADDRESS (1 << 11)
#endif
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM /* 5.19 */
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED /* 6.4: write-protection of holes in anonymous memory */
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_POISON /* 6.6: UFFDIO_POISON */
#define UFFD_FEATURE_POISON (1 << 14)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC /* 6.7: the kernel resolves write-protect faults by itself */
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#ifndef UFFD_FEATURE_MOVE /* 6.8: UFFDIO_MOVE */
#define UFFD_FEATURE_MOVE (1 << 16)
#endif

/** How many feature bits have a name above or in the oldest supported headers. */
#define USW_UFFD_FEATURES_KNOWN 17

// --- userfaultfd: ioctls ------------------------------------------------------------------------

/* Linux 6.8, adef440691bab. `move` is signed: bytes moved, or -EAGAIN, -EEXIST, -ENOENT, -EBUSY. */
#ifndef UFFDIO_MOVE
#define _UFFDIO_MOVE (0x05)
struct uffdio_move {
	__u64 dst;
	__u64 src;
	__u64 len;
	__u64 mode;
	__s64 move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, _UFFDIO_MOVE, struct uffdio_move)
#define UFFDIO_MOVE_MODE_DONTWAKE ((__u64)1 << 0)
#define UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES ((__u64)1 << 1)
#endif

/* Linux 6.6, fc71884a5f599. A later access to the range gets SIGBUS (BUS_MCEERR_AR). */
#ifndef UFFDIO_POISON
#define _UFFDIO_POISON (0x08)
struct uffdio_poison {
	struct uffdio_range range;
	__u64 mode;
	__s64 updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, _UFFDIO_POISON, struct uffdio_poison)
#define UFFDIO_POISON_MODE_DONTWAKE ((__u64)1 << 0)
#endif

// --- ioctls on /proc/PID/pagemap and /proc/PID/maps ---------------------------------------------

#ifndef PROCFS_IOCTL_MAGIC
#define PROCFS_IOCTL_MAGIC 'f'
#endif

/*
 * Linux 6.7, 52526ca7fdb90: pages by category, 5 ns each, where reading pagemap words is 10x that.
 */
#ifndef PAGEMAP_SCAN
#define PAGEMAP_SCAN _IOWR(PROCFS_IOCTL_MAGIC, 16, struct pm_scan_arg)

#define PAGE_IS_WPALLOWED (1 << 0)
#define PAGE_IS_WRITTEN (1 << 1)
#define PAGE_IS_FILE (1 << 2)
#define PAGE_IS_PRESENT (1 << 3)
#define PAGE_IS_SWAPPED (1 << 4)
#define PAGE_IS_PFNZERO (1 << 5)
#define PAGE_IS_HUGE (1 << 6)

struct page_region {
	__u64 start;
	__u64 end;
	__u64 categories;
};

#define PM_SCAN_WP_MATCHING (1 << 0)
#define PM_SCAN_CHECK_WPASYNC (1 << 1)

struct pm_scan_arg {
	__u64 size; /* of this struct */
	__u64 flags;
	__u64 start;
	__u64 end;
	__u64 walk_end; /* set by the kernel: where the walk stopped */
	__u64 vec;      /* struct page_region array */
	__u64 vec_len;
	__u64 max_pages; /* 0: no limit */
	__u64 category_inverted;
	__u64 category_mask;
	__u64 category_anyof_mask;
	__u64 return_mask;
};
#endif
#ifndef PAGE_IS_SOFT_DIRTY /* 6.7 */
#define PAGE_IS_SOFT_DIRTY (1 << 7)
#endif
#ifndef PAGE_IS_GUARD /* 6.15 */
#define PAGE_IS_GUARD (1 << 8)
#endif

/* Linux 6.11, ed5d583a88a92: one mapping by address, as a struct instead of a line of text. */
#ifndef PROCMAP_QUERY
#define PROCMAP_QUERY _IOWR(PROCFS_IOCTL_MAGIC, 17, struct procmap_query)

enum procmap_query_flags {
	PROCMAP_QUERY_VMA_READABLE = 0x01,
	PROCMAP_QUERY_VMA_WRITABLE = 0x02,
	PROCMAP_QUERY_VMA_EXECUTABLE = 0x04,
	PROCMAP_QUERY_VMA_SHARED = 0x08,
	PROCMAP_QUERY_COVERING_OR_NEXT_VMA = 0x10,
	PROCMAP_QUERY_FILE_BACKED_VMA = 0x20,
};

struct procmap_query {
	__u64 size; /* of this struct */
	__u64 query_flags;
	__u64 query_addr;
	__u64 vma_start;
	__u64 vma_end;
	__u64 vma_flags;
	__u64 vma_page_size;
	__u64 vma_offset;
	__u64 inode;
	__u32 dev_major;
	__u32 dev_minor;
	__u32 vma_name_size; /* 0: no name wanted */
	__u32 build_id_size;
	__u64 vma_name_addr;
	__u64 build_id_addr;
};
#endif

// --- sockets, madvise, memfd, clone -------------------------------------------------------------

/* Linux 6.5, 7b26952a91cf6: a pidfd of the peer, free of the race between pid and pidfd_open(2). */
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

#ifndef MADV_POPULATE_READ /* 5.14 */
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE /* 5.14: fault in for writing, which also takes over shared pages */
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE /* 6.1 */
#define MADV_COLLAPSE 25
#endif

#ifndef MADV_GUARD_INSTALL /* 6.13: accesses end in SIGSEGV, and what was there is gone */
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

#ifndef MFD_NOEXEC_SEAL /* 6.3 */
#define MFD_NOEXEC_SEAL 0x0008U
#endif

#ifndef CLONE_CLEAR_SIGHAND /* 5.5, clone3(2) only */
#define CLONE_CLEAR_SIGHAND 0x100000000ULL
#endif

// --- system call numbers: the same on every architecture from 424 on ----------------------------

#ifndef SYS_pidfd_send_signal /* 5.1 */
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_pidfd_open /* 5.3 */
#define SYS_pidfd_open 434
#endif
#ifndef SYS_clone3 /* 5.3 */
#define SYS_clone3 435
#endif
#ifndef SYS_close_range /* 5.9 */
#define SYS_close_range 436
#endif
#ifndef SYS_process_madvise /* 5.10 */
#define SYS_process_madvise 440
#endif

#endif /* USW_UFFD_ABI_H */
