// SPDX-License-Identifier: GPL-2.0-only
/*
 * SEAMCALLs by hand: KVM makes its calls in the right order only, so what the
 * module checks of its host shows in calls that no KVM makes.
 */
#include <linux/errno.h>
#include <linux/fs.h>
#include <linux/gfp.h>
#include <linux/kstrtox.h>
#include <linux/mutex.h>
#include <linux/ptrace.h>
#include <linux/smp.h>
#include <linux/uaccess.h>
#include <asm/page.h>

#include "abi.h"
#include "dispatch.h"
#include "leaf.h"
#include "manual.h"

/* Pages for the calls, named @0, @1...  They are never freed: the module may own some. */
#define PAGES_ORDER	6
#define PAGES_SIZE	(PAGE_SIZE << PAGES_ORDER)

static DEFINE_MUTEX(manual_lock);
static void *pages;
static struct pt_regs last;

static int get_pages(void)
{
	if (!pages)
		pages = (void *)__get_free_pages(GFP_KERNEL | __GFP_ZERO, PAGES_ORDER);
	return pages ? 0 : -ENOMEM;
}

static int read_operand(const char *text, unsigned long *to)
{
	unsigned long nr;
	int err;

	if (*text != '@')
		return kstrtoul(text, 0, to);
	err = kstrtoul(text + 1, 0, &nr);
	if (err)
		return err;
	if (nr >> PAGES_ORDER)
		return -ERANGE;
	*to = __pa(pages) + (nr << PAGE_SHIFT);
	return 0;
}

static void call_here(void *regs)
{
	struct pt_regs *call = regs;

	call->ax = seam_dispatch(call);
}

/* leaf=NAME version=N cpu=N rcx=... rdx=... r8=... r9=...: numbers, or pages */
int seam_manual_call(char *line)
{
	char name[40], cx[32], dx[32], r8[32], r9[32];
	struct pt_regs regs = {};
	unsigned int version, cpu;
	int leaf, err;

	if (sscanf(line, "leaf=%39s version=%u cpu=%u rcx=%31s rdx=%31s r8=%31s r9=%31s",
		   name, &version, &cpu, cx, dx, r8, r9) != 7)
		return -EINVAL;
	leaf = seam_leaf_by_name(name);
	if (leaf < 0)
		return leaf;
	/* It would return with a guest's registers. */
	if (leaf == LEAF_VP_ENTER)
		return -EINVAL;

	mutex_lock(&manual_lock);
	err = get_pages();
	if (!err)
		err = read_operand(cx, &regs.cx);
	if (!err)
		err = read_operand(dx, &regs.dx);
	if (!err)
		err = read_operand(r8, &regs.r8);
	if (!err)
		err = read_operand(r9, &regs.r9);
	if (!err) {
		regs.ax = leaf | (u64)version << SEAM_VERSION_SHIFT;
		err = smp_call_function_single(cpu, call_here, &regs, true);
	}
	if (!err)
		last = regs;
	mutex_unlock(&manual_lock);
	return err;
}

void seam_manual_show(struct seq_file *m)
{
	mutex_lock(&manual_lock);
	seq_printf(m, "rax=0x%lx rcx=0x%lx rdx=0x%lx r8=0x%lx r9=0x%lx\n",
		   last.ax, last.cx, last.dx, last.r8, last.r9);
	mutex_unlock(&manual_lock);
}

ssize_t seam_manual_read(char __user *to, size_t len, loff_t *pos)
{
	ssize_t ret;

	mutex_lock(&manual_lock);
	ret = get_pages();
	if (!ret)
		ret = simple_read_from_buffer(to, len, pos, pages, PAGES_SIZE);
	mutex_unlock(&manual_lock);
	return ret;
}

ssize_t seam_manual_write(const char __user *from, size_t len, loff_t *pos)
{
	ssize_t ret;

	mutex_lock(&manual_lock);
	ret = get_pages();
	if (!ret)
		ret = simple_write_to_buffer(pages, PAGES_SIZE, pos, from, len);
	mutex_unlock(&manual_lock);
	return ret;
}
