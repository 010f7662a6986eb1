// SPDX-License-Identifier: MIT

/**
 * @file
 * Tasks: the threads of a process, and hands, as /proc knows them.
 *
 * A process may outlive its first thread, by pthread_exit(3) in main(). What /proc/PID then says of
 * memory is that there is none, since a task that ends lets go of its memory first; another thread
 * has to be asked. Likewise a task that ends has no memory in common with anybody.
 *
 * Nothing here locks or blocks. A number may be another task's when the answer comes: the caller has
 * a pidfd, or a connection, that says whether it was the right one's until then.
 */

#ifndef USW_TASK_H
#define USW_TASK_H

#include "base.h"

/**
 * Read the beginning of a file in /proc of one thread of a process, as a string. False: there is
 * no such thread, it may not be looked at, or there is nothing to read.
 */
bool usw_task_read(int pid, uint32_t thread_id, const char *name, char *ret, size_t bytes);

/**
 * Whether a process is in a PID namespace below ours, so that its threads' own numbers, by which
 * the kernel tells of their faults, are not those that they have here.
 */
bool usw_task_is_below(int pid);

/**
 * The number that a thread of such a process has here, by its own. 0: there is no such thread, or it
 * may not be looked at. Up to 20 us for each thread of the process.
 */
uint32_t usw_task_number(int pid, uint32_t own_id);

/** Whether a task, which may be any thread, has not let go of its memory yet: 3 us. */
bool usw_task_has_memory(int task_id);

/**
 * Open a file in /proc of a thread that has its memory, the first if it can be, for reading.
 * Returns a descriptor, or -ESRCH if there is none, or what open(2) says.
 */
int usw_task_open(int pid, const char *name);

/** Whether a thread is in a system call, waiting. False also if that is not for us to know. */
bool usw_task_is_in(int pid, uint32_t thread_id, long call);

/**
 * Whether a thread waits in a system call for the answer to a fault, and not for an event to be read.
 * Where the kernel does not tell (wchan), the system call is believed in alone.
 */
bool usw_task_faults_in(int pid, uint32_t thread_id, long call);

#endif /* USW_TASK_H */
