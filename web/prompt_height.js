// The prompt boxes of VGT AR Sampler keep their height when a preview takes room in the node. What they may at least be
// is told to each renderer in its own way: to the canvas by the widgets' options, to Nodes 2.0 by a style sheet.
import { app } from '../../scripts/app.js'

const HEIGHT = 80

const sheet = document.head.appendChild(document.createElement('style'))
const samplers = new Set()

function writeSheet() {
  const rules = [...samplers].map((node) => `[data-node-id="${node.id}"] textarea { min-height: ${HEIGHT}px }`)
  sheet.textContent = rules.join('\n')
}

app.registerExtension({
  name: 'VGT.PromptHeight',
  nodeCreated(node) {
    if (node.comfyClass !== 'VGTARSampler') return
    for (const widget of node.widgets ?? []) {
      if (['prompt', 'negative_prompt'].includes(widget.name) && widget.options) {
        widget.options.getMinHeight = () => HEIGHT
      }
    }
    const { onAdded, onRemoved } = node
    node.onAdded = function (...given) {
      onAdded?.apply(this, given)
      samplers.add(this)
      writeSheet()
    }
    node.onRemoved = function (...given) {
      onRemoved?.apply(this, given)
      samplers.delete(this)
      writeSheet()
    }
  }
})
