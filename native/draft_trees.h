// Draft trees of one step, grown from the candidates of the heads and from copied text.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace medusa {

// A step's trees as the runtime describes them, in one block of memory; every field has 8 bytes.
// Arrays with `nodes` in their shape are written for the number of nodes that was chosen.
struct DraftTrees {
  // Inputs. `ids` and `logprobs` are null where the heads did not run.
  int64_t sequences, heads, top_k, max_copied;
  int64_t min_nodes, max_nodes;  // bounds of the number of nodes in each tree
  const int64_t* ids;            // (sequences, heads, top_k), each head's likeliest token first
  const float* logprobs;         // (sequences, heads, top_k)
  const int64_t* roots;          // (sequences,)
  const int64_t* copied;         // (sequences, max_copied), what may follow the root
  const int64_t* num_copied;     // (sequences,)
  const double* copied_share;    // (sequences,), probability that the first copied token is right
  const double* later_share;     // (sequences,), that a later one is if those before it are
  const double* trust;           // (sequences,), accepted drafts over those expected so far
  int64_t num_points;            // of the curve of a step's time over its rows
  const double* point_rows;      // (num_points,), increasing
  const double* point_ms;        // (num_points,)
  const double* point_past;      // (num_points,), cached tokens of a sequence at these times
  double past;                   // cached tokens of a sequence now, on average
  double past_ms;                // time that a further cached token adds to a row

  // Outputs; the caller provides the memory for `max_nodes`.
  int64_t nodes;                 // number of nodes in each tree
  double expected;               // expected number of tokens that the step adds, in all
  double step_ms, plain_ms;      // estimated time of the step, and of a step with `min_nodes`
  double* gains;                 // (sequences,), expected number of accepted drafts, without trust
  int64_t* tokens;               // (sequences, nodes)
  int64_t* parents;              // (sequences, nodes), -1 for the root
  int64_t* depths;               // (sequences, nodes)
  int64_t* children;             // (sequences, nodes, 2), first child and the node after the last
  float* mask;                   // (sequences, nodes, nodes), 0 or `kUnseen`

  void run() {
    std::vector<std::vector<Node>> trees(static_cast<size_t>(sequences));
    std::vector<double> gains(static_cast<size_t>(max_nodes) + 1, 0.0);
    for (int64_t s = 0; s < sequences; ++s) {
      std::vector<Node>& tree = trees[static_cast<size_t>(s)];
      grow(s, &tree);
      double sum = 0;
      for (int64_t n = 2; n <= max_nodes; ++n) {
        if (n <= static_cast<int64_t>(tree.size()))
          sum += trust[s] * tree[static_cast<size_t>(n) - 1].share;
        gains[static_cast<size_t>(n)] += sum;
      }
    }
    const std::vector<double> times = adjusted_times();
    plain_ms = time_of(min_nodes, times);
    nodes = min_nodes;
    double best = 0;
    for (int64_t n = min_nodes; n <= max_nodes; ++n) {
      const double rate = (static_cast<double>(sequences) + gains[static_cast<size_t>(n)]) / time_of(n, times);
      if (rate > best) best = rate, nodes = n;
    }
    step_ms = time_of(nodes, times);
    expected = static_cast<double>(sequences) + gains[static_cast<size_t>(nodes)];
    for (int64_t s = 0; s < sequences; ++s) {
      const std::vector<Node>& tree = trees[static_cast<size_t>(s)];
      gains_of(tree, s);
      write(s, tree);
    }
  }

 private:
  static constexpr float kUnseen = -3.4028234663852886e38f;  // the least float

  // A node in the order of its probability. `share` is that of its whole path.
  struct Node {
    int64_t token, parent, depth;
    double share;
    bool is_copied;
  };

  // A token that may become a node: the copied one after a copied node, or a head's candidate.
  struct Candidate {
    double share;
    int64_t parent, rank;
    bool is_copied;
    bool operator<(const Candidate& other) const { return share < other.share; }
  };

  void gains_of(const std::vector<Node>& tree, int64_t s) const {
    gains[s] = 0;
    for (size_t node = 1; node < tree.size() && static_cast<int64_t>(node) < nodes; ++node)
      gains[s] += tree[node].share;
  }

  double share_of(int64_t s, int64_t depth, int64_t rank) const {
    return std::exp(static_cast<double>(logprobs[(s * heads + depth) * top_k + rank]));
  }

  // Grows a tree to `max_nodes`, the likeliest path first; any first part of it is a tree as well.
  void grow(int64_t s, std::vector<Node>* tree) const {
    std::vector<Candidate> open;
    tree->reserve(static_cast<size_t>(max_nodes));
    open.reserve(3 * static_cast<size_t>(max_nodes) + 2);  // a node adds three at most
    const auto add = [&](const Candidate& candidate) {
      open.push_back(candidate);
      std::push_heap(open.begin(), open.end());
    };
    const auto add_copied = [&](int64_t node, double share) {
      const int64_t depth = (*tree)[static_cast<size_t>(node)].depth;
      if (depth < num_copied[s])
        add({share * (depth ? later_share : copied_share)[s], node, 0, true});
    };
    const auto add_candidate = [&](int64_t parent, int64_t rank) {
      const Node& node = (*tree)[static_cast<size_t>(parent)];
      if (ids && node.depth < heads && rank < top_k)
        add({node.share * share_of(s, node.depth, rank), parent, rank, false});
    };
    tree->push_back({roots[s], -1, 0, 1.0, true});
    add_copied(0, 1.0);
    add_candidate(0, 0);
    while (!open.empty() && static_cast<int64_t>(tree->size()) < max_nodes) {
      std::pop_heap(open.begin(), open.end());
      const Candidate taken = open.back();
      open.pop_back();
      const int64_t depth = (*tree)[static_cast<size_t>(taken.parent)].depth;
      const int64_t token = taken.is_copied ? copied[s * max_copied + depth]
                                            : ids[(s * heads + depth) * top_k + taken.rank];
      if (!taken.is_copied) add_candidate(taken.parent, taken.rank + 1);
      const int64_t same = find_child(*tree, taken.parent, token);
      if (same < 0) {
        const int64_t node = static_cast<int64_t>(tree->size());
        tree->push_back({token, taken.parent, depth + 1, taken.share, taken.is_copied});
        add_candidate(node, 0);
        if (taken.is_copied) add_copied(node, taken.share);
      } else if (taken.is_copied) {
        Node& node = (*tree)[static_cast<size_t>(same)];
        node.is_copied = true;
        add_copied(same, std::max(node.share, taken.share));
      }
    }
  }

  static int64_t find_child(const std::vector<Node>& tree, int64_t parent, int64_t token) {
    for (size_t node = static_cast<size_t>(parent) + 1; node < tree.size(); ++node)
      if (tree[node].parent == parent && tree[node].token == token)
        return static_cast<int64_t>(node);
    return -1;
  }

  // Estimated times of the points for the sequences' present length. More rows take longer, and
  // twice the rows at most twice as long: a point that says otherwise is older than its neighbour.
  std::vector<double> adjusted_times() const {
    std::vector<double> times(static_cast<size_t>(num_points));
    for (int64_t i = num_points - 1; i >= 0; --i) {
      double& ms = times[static_cast<size_t>(i)];
      ms = point_ms[i] + past_ms * point_rows[i] * (past - point_past[i]);
      if (i + 1 < num_points) ms = std::min(ms, times[static_cast<size_t>(i) + 1]);
    }
    for (size_t i = 1; i < times.size(); ++i)
      times[i] = std::min(times[i], times[i - 1] * point_rows[i] / point_rows[i - 1]);
    return times;
  }

  // Estimated time of a step with this many nodes for each sequence, linear between the points.
  double time_of(int64_t count, const std::vector<double>& times) const {
    const double rows = static_cast<double>(count * sequences);
    size_t right = 1;
    while (right + 1 < times.size() && point_rows[right] < rows) ++right;
    double ms = times.empty() ? 1 : times[0];
    if (times.size() > 1) {
      const double width = point_rows[right] - point_rows[right - 1];
      const double slope = (times[right] - times[right - 1]) / width;
      ms = times[right - 1] + slope * (rows - point_rows[right - 1]);
    }
    return std::max(ms, 1e-6);
  }

  // Writes the first nodes of a tree by (depth, parent), so that children have neighbouring
  // numbers. Where the tree has too few, unseen children of the root follow.
  void write(int64_t s, const std::vector<Node>& tree) const {
    const int64_t count = std::min<int64_t>(nodes, static_cast<int64_t>(tree.size()));
    std::vector<int64_t> order = {0};
    for (int64_t i = 0; i < nodes; ++i) {
      const int64_t at = s * nodes + i;
      float* row = mask + at * nodes;
      std::fill(row, row + nodes, kUnseen);
      row[i] = 0;
      children[2 * at] = children[2 * at + 1] = nodes;
      if (i >= count) {
        tokens[at] = roots[s];
        parents[at] = 0;
        depths[at] = 1;
        row[0] = 0;
        continue;
      }
      const Node& node = tree[static_cast<size_t>(order[static_cast<size_t>(i)])];
      tokens[at] = node.token;
      depths[at] = node.depth;
      if (i == 0) {
        parents[at] = -1;
      } else {
        const float* above = mask + (s * nodes + parents[at]) * nodes;
        for (int64_t j = 0; j < i; ++j)
          if (above[j] == 0) row[j] = 0;
      }
      children[2 * at] = static_cast<int64_t>(order.size());
      for (int64_t child = order[static_cast<size_t>(i)] + 1; child < count; ++child)
        if (tree[static_cast<size_t>(child)].parent == order[static_cast<size_t>(i)]) {
          parents[s * nodes + static_cast<int64_t>(order.size())] = i;
          order.push_back(child);
        }
      children[2 * at + 1] = static_cast<int64_t>(order.size());
    }
  }
};

}  // namespace medusa
