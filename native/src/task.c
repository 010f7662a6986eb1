// SPDX-License-Identifier: MIT

/**
 * @file
 * What /proc says of tasks. See task.h.
 */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "task.h"

/* What is looked for in a status file is behind a list of groups, of which few have a hundred. */
#define USW_STATUS_BYTES 4096u

static int open_file(int task_id, const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", task_id, name);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

bool usw_task_read(int pid, uint32_t thread_id, const char *name, char *ret, size_t bytes)
{
	char in_task[48];

	snprintf(in_task, sizeof(in_task), "task/%u/%s", thread_id, name);
	_cleanup_close_ int fd = open_file(pid, in_task);
	ssize_t got = fd < 0 ? -1 : read(fd, ret, bytes - 1);
	ret[got > 0 ? got : 0] = '\0';
	return got > 0;
}

/** In how many PID namespaces, from ours down, a thread has a number; and that in the last. */
static uint32_t read_numbers(int pid, uint32_t thread_id, uint32_t *ret_own_id)
{
	static const char name[] = "\nNSpid:";
	char text[USW_STATUS_BYTES];
	uint32_t count = 0;

	if (!usw_task_read(pid, thread_id, "status", text, sizeof(text)))
		return 0;
	char *at = strstr(text, name);
	for (char *end = at ? at + strlen(name) : NULL; end && end != at; count++) {
		at = end;
		unsigned long number = strtoul(at, &end, 10); // the next line begins with a letter
		if (end == at)
			break;
		*ret_own_id = (uint32_t)number;
	}
	return count;
}

bool usw_task_is_below(int pid)
{
	uint32_t own_id;

	return read_numbers(pid, (uint32_t)pid, &own_id) > 1;
}

static bool is_own_id(int pid, uint32_t thread_id, uint32_t own_id)
{
	uint32_t found = 0;

	return read_numbers(pid, thread_id, &found) && found == own_id;
}

uint32_t usw_task_number(int pid, uint32_t own_id)
{
	char entries[1024];
	char path[64];
	long got;

	if (is_own_id(pid, (uint32_t)pid, own_id))
		return (uint32_t)pid;
	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	_cleanup_close_ int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	while (folder >= 0 &&
	       (got = syscall(SYS_getdents64, folder, entries, sizeof(entries))) > 0) {
		for (long at = 0; at < got;) {
			const struct dirent64 *entry = (const void *)&entries[at];
			uint32_t thread_id = (uint32_t)atoi(entry->d_name); // "." and ".." are 0

			if (thread_id && is_own_id(pid, thread_id, own_id))
				return thread_id;
			at += entry->d_reclen;
		}
	}
	return 0;
}

bool usw_task_has_memory(int task_id)
{
	char text[128];

	return usw_task_read(task_id, (uint32_t)task_id, "statm", text, sizeof(text)) &&
	       strtoull(text, NULL, 10) > 0; // the size, in pages
}

/** Another thread of a process that has its memory; 0: there is none. */
static int find_other(int pid)
{
	char path[64];
	int found = 0;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	DIR *tasks = opendir(path);
	for (const struct dirent *entry; tasks && !found && (entry = readdir(tasks));) {
		int task_id = atoi(entry->d_name); // "." and ".." are 0

		if (task_id && task_id != pid && usw_task_has_memory(task_id))
			found = task_id;
	}
	if (tasks)
		closedir(tasks);
	return found;
}

int usw_task_open(int pid, const char *name)
{
	int task_id = usw_task_has_memory(pid) ? pid : find_other(pid);

	return task_id ? open_file(task_id, name) : -ESRCH;
}

bool usw_task_is_in(int pid, uint32_t thread_id, long call)
{
	char text[32];

	// The number and its arguments; -1 outside of any, "running" where it does not wait.
	return usw_task_read(pid, thread_id, "syscall", text, sizeof(text)) && text[0] >= '0' &&
	       text[0] <= '9' && strtol(text, NULL, 10) == call;
}

bool usw_task_faults_in(int pid, uint32_t thread_id, long call)
{
	static const char fault[] = "handle_userfault";
	char text[64];

	// Asked before and after: in between it may have left the call, and wait for another fault.
	return usw_task_is_in(pid, thread_id, call) &&
	       usw_task_read(pid, thread_id, "wchan", text, sizeof(text)) &&
	       (!strcmp(text, "0") || !strcmp(text, fault)) && usw_task_is_in(pid, thread_id, call);
}
